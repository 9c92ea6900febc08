/* MaxPool and AveragePool with channels last, for CPUs: vectors of channels. With AVERAGE the sum is divided by the
   number of elements, with PADDED of those in the padding too; otherwise the maximum is stored, and a NaN never wins,
   as in pool.cl. With a PROLOGUE (see gpurt.device.prologue) the data are what it computes. */
#ifdef PROLOGUE
#define DATA_PARAM PROLOGUE_PARAMS
#define OPEN_DATA PROLOGUE_OPEN
#define PIXEL(at) PROLOGUE_SLICE((i64)(at))
#define AT1(c) prologue1(c, 0 PROLOGUE_PASS)
#define AT8(c) prologue8(c, 0 PROLOGUE_PASS)
#if LANES == 16
#define CHANNELS(c) (float16)(AT8(c), AT8((c) + 8))
#elif LANES == 8
#define CHANNELS(c) AT8(c)
#elif LANES == 4
#define CHANNELS(c) (float4)(AT1(c), AT1((c) + 1), AT1((c) + 2), AT1((c) + 3))
#else
#define CHANNELS(c) AT1(c)
#endif
#else
#define DATA_PARAM INPUT(float, x),
#define OPEN_DATA OPEN_IN(float, x);
#define PIXEL(at) const GLOBAL float *const pixel = x + (i64)(at) * C;
#define CHANNELS(c) LOAD(pixel + (c))
#endif

KFN(1, 1, 1) pool_last(
    DATA_PARAM TENSOR(float, y), EPILOGUE_PARAMS const i32 H, const i32 W, const i32 C, const i32 y_row, const i32 OH,
    const i32 OW, const i32 KH, const i32 KW, const i32 stride_h, const i32 stride_w, const i32 dilation_h,
    const i32 dilation_w, const i32 begin_h, const i32 begin_w, const i32 limit_h, const i32 limit_w, const i32 rows,
    const i32 per) {
  OPEN_DATA
  OPEN(float, y);
  EPILOGUE_OPEN
#ifdef EPILOGUE
  const GLOBAL float *const y_first = y;
#endif
  const i32 first = GROUP(0) * per;
  const i32 last = first + per < rows ? first + per : rows;
  for (i32 row = first; row < last; row++) {
    const i32 h0 = row % OH * stride_h - begin_h;
    const i32 image = row / OH * H;
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
          const i32 from = (image + h0 + kh * dilation_h) * W + w0;
          for (i32 kw = kw0; kw < kw1; kw++) {
            PIXEL(from + kw * dilation_w)
            const VECTOR v = CHANNELS(c);
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
