/* Pad: every element of the output from the place in a window of the input that its mode says, or from a value. After
 * rows.h; T is an unsigned type of the element's size.
 *
 * Dimension d of the output has m<d> elements; it begins p<d> elements before the window, which has n<d> elements of
 * stride s<d> in the input.
 */

#if defined(MODE_EDGE)
FN i64 outside(const i64 j, const i64 n) { return j < 0 ? 0 : n - 1; }
#elif defined(MODE_REFLECT)
FN i64 outside(const i64 j, const i64 n) { /* the edge itself is not repeated; far away it goes back and forth */
  const i64 period = n > 1 ? 2 * (n - 1) : 1;
  const i64 k = (j % period + period) % period;
  return k < n ? k : period - k;
}
#elif defined(MODE_WRAP)
FN i64 outside(const i64 j, const i64 n) { return (j % n + n) % n; }
#endif

#ifdef HAS_VALUE
#define VALUE_PARAM INPUT(T, v),
#define OPEN_VALUE \
  OPEN_IN(T, v); \
  const T value = v[0];
#else
#define VALUE_PARAM
#define OPEN_VALUE const T value = 0;
#endif

ROW_KERNEL pad(INPUT(T, x), VALUE_PARAM TENSOR(T, y), ROW_PARAMS PARAMS) {
  OPEN_IN(T, x);
  OPEN(T, y);
#ifdef MODE_CONSTANT
  OPEN_VALUE
#endif
  const i64 m[RANK] = LIST_M;
  const i64 n[RANK] = LIST_N;
  const i64 p[RANK] = LIST_P;
  const i64 s[RANK] = LIST_S;
  const i64 first = p[RANK - 1], size = n[RANK - 1], step = s[RANK - 1];
  EACH_ROW(row) {
    POS rest = row;
    i64 from = 0;
    i32 inside = 1;
    UNROLL
    for (i32 d = RANK - 2; d >= 0; d--) {
      const POS up = rest / (POS)m[d];
      i64 j = rest - up * m[d] - p[d];
      rest = up;
      if (j < 0 || j >= n[d]) {
#ifdef MODE_CONSTANT
        inside = 0;
#else
        j = outside(j, n[d]);
#endif
      }
      from += j * s[d];
    }
    GLOBAL const T *src = x + from;
    GLOBAL T *dst = y + (i64)row * inner;
#ifdef MODE_CONSTANT
#define BEYOND(j) value
#else
#define BEYOND(j) src[outside(j, size) * step]
#endif
#ifdef GP_CPU_CLASS
    /* Before, in and after the window: three loops without a decision in them. */
    i64 low = first < begin ? begin : first > end ? end : first;
    i64 high = first + size < low ? low : first + size > end ? end : first + size;
    if (!inside) high = low;
    for (i64 i = begin; i < low; i++) dst[i] = BEYOND(i - first);
    if (step == 1)
      for (i64 i = low; i < high; i++) dst[i] = src[i - first];
    else
      for (i64 i = low; i < high; i++) dst[i] = src[(i - first) * step];
    for (i64 i = high; i < end; i++) dst[i] = BEYOND(i - first);
#else
    EACH(i) {
      const i64 j = i - first;
      if (inside && j >= 0 && j < size)
        dst[i] = src[j * step];
      else
        dst[i] = BEYOND(j);
    }
#endif
  }
}
