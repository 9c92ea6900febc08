/* Convolution with channels last, for CPUs: a product whose rows are output pixels and whose columns are filters.

   MR pixels by NV vectors of 16 filters are summed at a time. A pixel's channels lie side by side, and where taps are
   neighbours a row of them does too, so nothing is copied or padded first: what lies outside of the image is read from
   a row of zeros instead. POINTWISE is the case of one tap and stride 1, where rows are the input's pixels. Filters are
   packed: w[group][panel][kh][kw][channel][16], filled up with zeros. */

KFN(1, 1, 1) conv_last(
    INPUT(float, x), INPUT(float, w), INPUT(float, zeros), TENSOR(float, y),
#if HAS_BIAS
    INPUT(float, bias),
#endif
    EPILOGUE_PARAMS const i32 H, const i32 W, const i32 C, const i32 OH, const i32 OW, const i32 y_row,
    const i32 channels, const i32 filters, const i32 panels, const i32 KH, const i32 KW, const i32 stride_h,
    const i32 stride_w, const i32 dilation_h, const i32 dilation_w, const i32 begin_h, const i32 begin_w,
    const i32 pixels, const i32 rows) {
  OPEN_IN(float, x);
  OPEN_IN(float, w);
  OPEN_IN(float, zeros);
  OPEN(float, y);
  EPILOGUE_OPEN
#ifdef EPILOGUE
  const GLOBAL float *const y_first = y;
#endif
  const i32 n0 = GROUP(0) * 16 * NV;
  const i64 panel = (i64)KH * KW * channels * 16;
  x += GROUP(2) * channels;
  y += GROUP(2) * filters + n0;
  w += ((i64)GROUP(2) * panels + GROUP(0) * NV) * panel;
#if HAS_BIAS
  OPEN_IN(float, bias);
  bias += GROUP(2) * filters + n0;
#endif
  const i32 first = GROUP(1) * rows;
  const i32 stop = first + rows < pixels ? first + rows : pixels;
#if !POINTWISE
  i32 ow = first % OW, oh = first / OW % OH, image = first / OW / OH;
#endif
  for (i32 m = first; m < stop; m += MR) {
    float16 acc[MR][NV];
#pragma unroll
    for (i32 i = 0; i < MR; i++)
#pragma unroll
      for (i32 j = 0; j < NV; j++) acc[i][j] = (float16)(0.0f);
    const GLOBAL float *restrict f = w;
#if POINTWISE
    const GLOBAL float *restrict p[MR];
#pragma unroll
    for (i32 i = 0; i < MR; i++) p[i] = x + (i64)(m + i < stop ? m + i : stop - 1) * C;
    PRODUCTS(channels)
#else
    i32 at_h[MR], at_w[MR];
    const GLOBAL float *at[MR];
    i32 inside = 1; /* whether rows of taps lie in the image from end to end */
#pragma unroll
    for (i32 i = 0; i < MR; i++) {
      at_h[i] = oh * stride_h - begin_h;
      at_w[i] = ow * stride_w - begin_w;
      at[i] = x + (((i64)image * H + at_h[i]) * W + at_w[i]) * C;
      inside &= at_w[i] >= 0 && at_w[i] + (KW - 1) * dilation_w < W;
      if (m + i + 1 < stop && ++ow == OW) { /* pixels past the last one repeat it and are not stored */
        ow = 0;
        if (++oh == OH) {
          oh = 0;
          image++;
        }
      }
    }
    for (i32 kh = 0; kh < KH; kh++) {
      const i32 h = kh * dilation_h;
#if NEIGHBOURS
      if (inside) {
        const GLOBAL float *restrict p[MR];
#pragma unroll
        for (i32 i = 0; i < MR; i++)
          p[i] = at_h[i] + h >= 0 && at_h[i] + h < H ? at[i] + (i64)h * W * C : zeros;
        PRODUCTS(KW * channels)
        continue;
      }
#endif
      for (i32 kw = 0; kw < KW; kw++) {
        const i32 c = kw * dilation_w;
        const GLOBAL float *restrict p[MR];
#pragma unroll
        for (i32 i = 0; i < MR; i++) {
          const i32 exists = at_h[i] + h >= 0 && at_h[i] + h < H && at_w[i] + c >= 0 && at_w[i] + c < W;
          p[i] = exists ? at[i] + ((i64)h * W + c) * C : zeros;
        }
        PRODUCTS(channels)
      }
    }
#endif
#pragma unroll
    for (i32 i = 0; i < MR; i++) {
      if (m + i >= stop) continue;
#pragma unroll
      for (i32 j = 0; j < NV; j++) {
        STORE_COLUMNS(y + (i64)(m + i) * y_row + 16 * j, acc[i][j], filters - n0 - 16 * j, bias + 16 * j)
      }
    }
  }
}
