/* LRN with channels last, for CPUs: a pixel's squares lie between zeros in a row of the item's own, so that a window is
   SIZE vectors added up. y = x / (bias + alpha * sum) ^ beta; alpha is already divided by the size. A power is exp(log):
   the base is positive, and pow is slow; with ROOTS beta is 3/4, the usual one. */
#define OWN(p) (((const struct any_vector *)(p))->v)

KFN(1, 1, 1) lrn_last(
    INPUT(float, x), TENSOR(float, y), const i32 pixels, const i32 per, const float alpha, const float beta,
    const float bias) {
  OPEN_IN(float, x);
  OPEN(float, y);
  float squares[CHANNELS + SIZE - 1];
  for (i32 i = 0; i < CHANNELS + SIZE - 1; i++) squares[i] = 0.0f;
  const i32 first = GROUP(0) * per;
  const i32 last = first + per < pixels ? first + per : pixels;
  for (i32 pixel = first; pixel < last; pixel++) {
    const GLOBAL float *const from = x + (i64)pixel * CHANNELS;
    GLOBAL float *const out = y + (i64)pixel * CHANNELS;
    FOR_CHANNELS(c, CHANNELS) {
      const VECTOR v = LOAD(from + c);
      ((struct any_vector *)(squares + BEFORE + c))->v = v * v;
    }
    FOR_CHANNELS(c, CHANNELS) {
      VECTOR sum = OWN(squares + c);
#pragma unroll
      for (i32 i = 1; i < SIZE; i++) sum += OWN(squares + c + i);
      sum = sum * alpha + bias;
#if ROOTS
      const VECTOR root = sqrt(sum);
      ((GLOBAL struct any_vector *)(out + c))->v = LOAD(from + c) / (root * sqrt(root));
#else
      ((GLOBAL struct any_vector *)(out + c))->v = LOAD(from + c) * exp(log(sum) * -beta);
#endif
    }
  }
}
