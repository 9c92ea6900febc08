/* MaxPool and AveragePool with channels last, for CPUs: vectors of channels. With AVERAGE the sum is divided by the
   number of elements, with PADDED of those in the padding too; otherwise the maximum is stored, and a NaN never wins,
   as in pool.cl. */
KFN(1, 1, 1) pool_last(
    INPUT(float, x), TENSOR(float, y), const i32 H, const i32 W, const i32 C, const i32 y_row, const i32 OH,
    const i32 OW, const i32 KH, const i32 KW, const i32 stride_h, const i32 stride_w, const i32 dilation_h,
    const i32 dilation_w, const i32 begin_h, const i32 begin_w, const i32 limit_h, const i32 limit_w, const i32 rows,
    const i32 per) {
  OPEN_IN(float, x);
  OPEN(float, y);
  const i32 first = GROUP(0) * per;
  const i32 last = first + per < rows ? first + per : rows;
  for (i32 row = first; row < last; row++) {
    const i32 h0 = row % OH * stride_h - begin_h;
    const GLOBAL float *const image = x + (i64)(row / OH) * H * W * C;
    TAPS_WITHIN(kh0, kh1, h0, KH, dilation_h, H);
    for (i32 ow = 0; ow < OW; ow++) {
      const i32 w0 = ow * stride_w - begin_w;
      TAPS_WITHIN(kw0, kw1, w0, KW, dilation_w, W);
#if AVERAGE && PADDED
      TAPS_WITHIN(ph0, ph1, h0 + begin_h, KH, dilation_h, limit_h + begin_h);
      TAPS_WITHIN(pw0, pw1, w0 + begin_w, KW, dilation_w, limit_w + begin_w);
      const float count = (float)((ph1 - ph0) * (pw1 - pw0));
#elif AVERAGE
      const float count = (float)((kh1 - kh0) * (kw1 - kw0));
#endif
      GLOBAL float *const out = y + ((i64)row * OW + ow) * y_row;
      FOR_CHANNELS(c, C) {
#if AVERAGE
        VECTOR a = (VECTOR)(0.0f);
#else
        VECTOR a = (VECTOR)(-INFINITY);
#endif
        for (i32 kh = kh0; kh < kh1; kh++) {
          const GLOBAL float *const from = image + ((i64)(h0 + kh * dilation_h) * W + w0) * C + c;
          for (i32 kw = kw0; kw < kw1; kw++) {
            const VECTOR v = LOAD(from + kw * dilation_w * C);
#if AVERAGE
            a += v;
#else
            a = v > a ? v : a;
#endif
          }
        }
#if AVERAGE
        a /= count;
#endif
        STORE(out + c, a);
      }
    }
  }
}
