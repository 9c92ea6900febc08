/* Operators that treat each channel of [N, C, S] on its own: inference BatchNormalization, and LRN across neighbours;
 * and APPLY, which brings statistics of any axes back to the elements. A kernel is picked by a macro of its name.
 *
 * In the CPU class a task is a piece of at most PIECE elements of one plane; in the GPU class an item is one element.
 */
#ifdef BATCH_NORM
/* P is the type of scale and bias, M of mean and variance. */
#define FACTOR(k) (LD_P(scale, k) / sqrt((A)LD_M(variance, k) + (A)epsilon))

#define PARAMS INPUT(T, x), INPUT(P, scale), INPUT(P, bias), INPUT(M, mean), INPUT(M, variance), TENSOR(T, y)
#define OPEN_ALL \
  OPEN_IN(T, x); \
  OPEN_IN(P, scale); \
  OPEN_IN(P, bias); \
  OPEN_IN(M, mean); \
  OPEN_IN(M, variance); \
  OPEN(T, y)

KFN(BLOCK, 1, 1)
batch_norm(PARAMS, const i64 tasks, const i64 per, const i64 channels, const i64 spatial, const float epsilon) {
  OPEN_ALL;
#ifdef GP_CPU_CLASS
  const i64 pieces = CEIL_DIV(spatial, PIECE);
  const i64 first = GROUP(0) * per;
  const i64 last = first + per < tasks ? first + per : tasks;
  for (i64 task = first; task < last; task++) {
    const i64 plane = task / pieces;
    const i64 k = plane % channels;
    const i64 begin = task % pieces * PIECE;
    const i64 end = begin + PIECE < spatial ? begin + PIECE : spatial;
    const A factor = FACTOR(k), center = LD_M(mean, k), shift = LD_P(bias, k);
    const GLOBAL T *p = x + plane * spatial;
    GLOBAL T *q = y + plane * spatial;
    i64 i = begin;
    for (; i + 8 <= end; i += 8) ST8_T(q, i, (LD8_T(p, i) - center) * factor + shift);
    for (; i < end; i++) {
      const A v = (LD_T(p, i) - center) * factor + shift;
      ST_T(q, i, v);
    }
  }
#else
  const i64 i = INDEX(0);
  if (i >= tasks) return;
  const i64 k = i / spatial % channels;
  const A v = (LD_T(x, i) - (A)LD_M(mean, k)) * FACTOR(k) + (A)LD_P(bias, k);
  ST_T(y, i, v);
#endif
}
#endif

#ifdef LRN
/* y = x / (bias + alpha * sum of the squares of `before` channels below to `after` above) ^ beta; alpha is already divided
 * by the size. A power is exp(log): the base is positive, and pow is slow. */
KFN(BLOCK, 1, 1)
lrn(INPUT(T, x), TENSOR(T, y), const i64 tasks, const i64 per, const i64 channels, const i64 spatial, const i64 before,
    const i64 after, const float alpha, const float beta, const float bias) {
  OPEN_IN(T, x);
  OPEN(T, y);
#ifdef GP_CPU_CLASS
  const i64 pieces = CEIL_DIV(spatial, PIECE);
  const i64 begin_task = GROUP(0) * per;
  const i64 end_task = begin_task + per < tasks ? begin_task + per : tasks;
  for (i64 task = begin_task; task < end_task; task++) {
    const i64 plane = task / pieces;
    const i64 k = plane % channels;
    const i64 first = plane - (before < k ? before : k);
    const i64 last = plane + (after < channels - 1 - k ? after : channels - 1 - k);
    i64 i = task % pieces * PIECE;
    const i64 end = i + PIECE < spatial ? i + PIECE : spatial;
    for (; i + 8 <= end; i += 8) {
      A8 sum = 0;
      for (i64 other = first; other <= last; other++) {
        const A8 v = LD8_T(x, other * spatial + i);
        sum += v * v;
      }
      const A8 power = exp(log(sum * (A)alpha + (A)bias) * -(A)beta);
      ST8_T(y, plane * spatial + i, LD8_T(x, plane * spatial + i) * power);
    }
    for (; i < end; i++) {
      A sum = 0;
      for (i64 other = first; other <= last; other++) {
        const A v = LD_T(x, other * spatial + i);
        sum += v * v;
      }
      const A power = exp(log(sum * (A)alpha + (A)bias) * -(A)beta);
      ST_T(y, plane * spatial + i, LD_T(x, plane * spatial + i) * power);
    }
  }
#else
  const i64 i = INDEX(0);
  if (i >= tasks) return;
  const i64 k = i / spatial % channels;
  const i64 first = before < k ? -before : -k;
  const i64 last = after < channels - 1 - k ? after : channels - 1 - k;
  A sum = 0;
  for (i64 d = first; d <= last; d++) {
    const A v = LD_T(x, i + d * spatial);
    sum += v * v;
  }
  const A power = exp(log(sum * (A)alpha + (A)bias) * -(A)beta);
  ST_T(y, i, LD_T(x, i) * power);
#endif
}
#endif

#ifdef APPLY
/* y = APPLY(v, s) for each element v of x, where s is the statistic of the element's group. x has the sizes n0..n7, the
 * statistics the strides s0..s7 in the same axes, 0 where an axis was reduced. */
KFN(BLOCK, 1, 1)
apply(INPUT(T, x), INPUT(A, statistics), TENSOR(U, y), const i64 n, const i64 n1, const i64 n2, const i64 n3,
      const i64 n4, const i64 n5, const i64 n6, const i64 n7, const i64 s0, const i64 s1, const i64 s2, const i64 s3,
      const i64 s4, const i64 s5, const i64 s6, const i64 s7) {
  OPEN_IN(T, x);
  OPEN_IN(A, statistics);
  OPEN(U, y);
  const i64 begin = INDEX(0) * CHUNK;
  const i64 end = begin + CHUNK < n ? begin + CHUNK : n;
  i64 i = begin;
  while (i < end) {
    /* A run along the last axis needs its place worked out once. */
    i64 rest = i / n7, at = 0;
    at += rest % n6 * s6;
    rest /= n6;
    at += rest % n5 * s5;
    rest /= n5;
    at += rest % n4 * s4;
    rest /= n4;
    at += rest % n3 * s3;
    rest /= n3;
    at += rest % n2 * s2;
    rest /= n2;
    at += rest % n1 * s1 + rest / n1 * s0;
    i64 k = i % n7;
    const i64 stop = n7 - k < end - i ? n7 - k : end - i;
    for (i64 j = 0; j < stop; j++, i++, k++) {
      const A v = LD_T(x, i), s = LD_A(statistics, at + k * s7);
      const A result = APPLY(v, s);
      ST_U(y, i, result);
    }
  }
}
#endif
