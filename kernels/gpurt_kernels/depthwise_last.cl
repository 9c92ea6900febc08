/* Depthwise convolution with channels last, for CPUs: vectors of channels, PIXELS neighbours in a row at a time, so that
   a tap's weights are read once for all of them. Filters are packed: w[kh][kw][channel]. An item computes whole rows. */
#define WINDOW                                                                                                       \
  const i32 H, const i32 W, const i32 C, const i32 y_row, const i32 OH, const i32 OW, const i32 stride_h,            \
      const i32 stride_w, const i32 dilation_h, const i32 dilation_w, const i32 begin_h, const i32 begin_w,          \
      const i32 rows, const i32 per

KFN(1, 1, 1) depthwise_last(
    INPUT(float, x), INPUT(float, w), TENSOR(float, y),
#if HAS_BIAS
    INPUT(float, bias),
#endif
    EPILOGUE_PARAMS WINDOW) {
  OPEN_IN(float, x);
  OPEN_IN(float, w);
  OPEN(float, y);
  EPILOGUE_OPEN
#ifdef EPILOGUE
  const GLOBAL float *const y_first = y;
#endif
#if HAS_BIAS
  OPEN_IN(float, bias);
#define BEGIN LOAD(bias + c)
#else
#define BEGIN (VECTOR)(0.0f)
#endif
  const i32 first = GROUP(0) * per;
  const i32 last = first + per < rows ? first + per : rows;
  for (i32 row = first; row < last; row++) {
    const i32 h0 = row % OH * stride_h - begin_h;
    const GLOBAL float *const image = x + (i64)(row / OH) * H * W * C;
    TAPS_WITHIN(kh0, kh1, h0, KH, dilation_h, H);
    for (i32 ow = 0; ow < OW;) {
      const i32 w0 = ow * stride_w - begin_w;
      GLOBAL float *const out = y + ((i64)row * OW + ow) * y_row;
      if (ow + PIXELS <= OW && w0 >= 0 && w0 + (PIXELS - 1) * stride_w + (KW - 1) * dilation_w < W) {
        FOR_CHANNELS(c, C) {
          VECTOR sum[PIXELS];
#pragma unroll
          for (i32 i = 0; i < PIXELS; i++) sum[i] = BEGIN;
          for (i32 kh = kh0; kh < kh1; kh++) {
            const GLOBAL float *const from = image + ((i64)(h0 + kh * dilation_h) * W + w0) * C + c;
#pragma unroll
            for (i32 kw = 0; kw < KW; kw++) {
              const VECTOR tap = LOAD(w + (kh * KW + kw) * C + c);
#pragma unroll
              for (i32 i = 0; i < PIXELS; i++) sum[i] += tap * LOAD(from + (i * stride_w + kw * dilation_w) * C);
            }
          }
#pragma unroll
          for (i32 i = 0; i < PIXELS; i++) STORE(out + i * y_row + c, sum[i]);
        }
        ow += PIXELS;
        continue;
      }
      TAPS_WITHIN(kw0, kw1, w0, KW, dilation_w, W);
      FOR_CHANNELS(c, C) {
        VECTOR sum = BEGIN;
        for (i32 kh = kh0; kh < kh1; kh++) {
          const GLOBAL float *const from = image + ((i64)(h0 + kh * dilation_h) * W + w0) * C + c;
          for (i32 kw = kw0; kw < kw1; kw++) sum += LOAD(w + (kh * KW + kw) * C + c) * LOAD(from + kw * dilation_w * C);
        }
        STORE(out + c, sum);
      }
      ow++;
    }
  }
}
