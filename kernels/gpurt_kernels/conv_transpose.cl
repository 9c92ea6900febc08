/* The second half of a transposed convolution: the product of the weights with every input pixel is there as
   cols[image][output channel][tap][input pixel]; each output element gathers those that fall on it.
   Tap t of axis a sends input i to output i * stride + t * dilation - begin. */
#ifdef GP_CPU_CLASS
#define CHUNK 256
KFN(1, 1, 1)
#else
KFN(256, 1, 1)
#endif
conv_transpose(INPUT(float, cols), TENSOR(T, y),
#if HAS_BIAS
               INPUT(T, bias),
#endif
               const i32 images, const i32 filters, const i32 D, const i32 H, const i32 W, const i32 out_d,
               const i32 out_h, const i32 out_w, const i32 kd, const i32 kh, const i32 kw, const i32 stride_d,
               const i32 stride_h, const i32 stride_w, const i32 dilation_d, const i32 dilation_h,
               const i32 dilation_w, const i32 begin_d, const i32 begin_h, const i32 begin_w) {
  OPEN_IN(float, cols);
  OPEN(T, y);
#if HAS_BIAS
  OPEN_IN(T, bias);
#endif
  const i64 pixels = (i64)D * H * W;
#ifdef GP_CPU_CLASS
  /* A row of the output an item, in chunks that stay in the first cache: the inner loop adds up what one tap sends. */
  const i32 row = GROUP(0), plane = GROUP(1) + GROUPS(1) * GROUP(2);
  if (plane >= images * filters) return;
  const i32 od = row / out_h, oh = row % out_h;
  GLOBAL T *out = y + ((i64)plane * out_d * out_h + row) * out_w;
  for (i32 w0 = 0; w0 < out_w; w0 += CHUNK) {
    const i32 count = out_w - w0 < CHUNK ? out_w - w0 : CHUNK;
    float sum[CHUNK];
#if HAS_BIAS
    const float start = LD_T(bias, plane % filters);
#else
    const float start = 0.0f;
#endif
    for (i32 i = 0; i < count; i++) sum[i] = start;
    for (i32 td = 0; td < kd; td++) {
      const i32 d = od + begin_d - td * dilation_d;
      if (d < 0 || d % stride_d != 0 || d / stride_d >= D) continue;
      for (i32 th = 0; th < kh; th++) {
        const i32 h = oh + begin_h - th * dilation_h;
        if (h < 0 || h % stride_h != 0 || h / stride_h >= H) continue;
        for (i32 tw = 0; tw < kw; tw++) {
          const i64 tap = ((i64)plane * kd + td) * kh * kw + th * kw + tw;
          const GLOBAL float *restrict from = cols + tap * pixels + ((i64)(d / stride_d) * H + h / stride_h) * W;
          /* input i lands on sum[i * stride_w + shift] */
          const i32 shift = tw * dilation_w - begin_w - w0;
          const i32 first = shift >= 0 ? 0 : (-shift + stride_w - 1) / stride_w;
          const i32 reach = count - shift <= 0 ? 0 : (count - shift + stride_w - 1) / stride_w;
          const i32 end = reach < W ? reach : W;
          if (stride_w == 1)
            for (i32 i = first; i < end; i++) sum[i + shift] += from[i];
          else
            for (i32 i = first; i < end; i++) sum[i * stride_w + shift] += from[i];
        }
      }
    }
    for (i32 i = 0; i < count; i++) ST_T(out, w0 + i, sum[i]);
  }
#else
  const i64 out_pixels = (i64)out_d * out_h * out_w;
  const i64 index = INDEX(0);
  if (index >= out_pixels * images * filters) return;
  const i64 plane = index / out_pixels;
  const i32 at = (i32)(index % out_pixels), ow = at % out_w, oh = at / out_w % out_h, od = at / out_w / out_h;
#if HAS_BIAS
  float sum = LD_T(bias, plane % filters);
#else
  float sum = 0.0f;
#endif
  for (i32 td = 0; td < kd; td++) {
    const i32 d = od + begin_d - td * dilation_d;
    if (d < 0 || d % stride_d != 0 || d / stride_d >= D) continue;
    for (i32 th = 0; th < kh; th++) {
      const i32 h = oh + begin_h - th * dilation_h;
      if (h < 0 || h % stride_h != 0 || h / stride_h >= H) continue;
      for (i32 tw = 0; tw < kw; tw++) {
        const i32 w = ow + begin_w - tw * dilation_w;
        if (w < 0 || w % stride_w != 0 || w / stride_w >= W) continue;
        const i64 tap = (plane * kd + td) * kh * kw + th * kw + tw;
        sum += cols[tap * pixels + ((i64)(d / stride_d) * H + h / stride_h) * W + w / stride_w];
      }
    }
  }
  ST_T(y, index, sum);
#endif
}
