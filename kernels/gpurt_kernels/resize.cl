/* Resize of one axis, or of two neighbours at once. After rows.h. x is (outer, n1, n2, inner), y (outer, m1, m2, inner).
 *
 * Where to read, and with what weights, the host has worked out: K1 and K2 taps for each place of an axis, as tables of
 * (taps, places). A first index below 0 marks a place outside of the input, which gets a value of its own
 * (EXTRAPOLATE). CHANNELS: rows run over the inner elements, else inner is 1 and they run over the second axis.
 */

/* Antialiasing has as many taps as the input shrinks: too many to unroll. */
#if defined(COPIES) || K1 * K2 <= 16
#define UNROLL_TAPS UNROLL
#else
#define UNROLL_TAPS
#endif

#ifdef COPIES /* nearest: T is an unsigned type of the element's size */
#define VALUE(p) (p)
#define STORE(q, i, v) (q)[i] = (v)
#define OUTSIDE_PARAM const T outside,
#define WEIGHTS_PARAM
#define OPEN_WEIGHTS
#else /* read T, compute in A, store D */
#if defined(LEAST)
#define STORE(q, i, v) \
  { \
    const A exact = (v); \
    ST_D(q, i, exact < (A)LEAST ? (D)LEAST_D : exact > (A)MOST ? (D)MOST_D : (D)exact); \
  }
#else
#define STORE(q, i, v) ST_D(q, i, v)
#endif
#define OUTSIDE_PARAM const A outside,
#define WEIGHTS_PARAM INPUT(A, w1), INPUT(A, w2),
#define OPEN_WEIGHTS \
  OPEN_IN(A, w1); \
  OPEN_IN(A, w2);
#endif

ROW_KERNEL resize(INPUT(T, x), TENSOR(D, y), INPUT(i32, i1), INPUT(i32, i2), WEIGHTS_PARAM OUTSIDE_PARAM const i64 n1,
                  const i64 n2, const i64 m1, const i64 m2, ROW_PARAMS) {
  OPEN_IN(T, x);
  OPEN(D, y);
  OPEN_IN(i32, i1);
  OPEN_IN(i32, i2);
  OPEN_WEIGHTS
  EACH_ROW(row) {
    GLOBAL D *q = y + (i64)row * inner;
#ifdef CHANNELS
    const i64 above = (i64)row / m2, o2 = (i64)row - above * m2;
    const i64 outer = above / m1, o1 = above - outer * m1;
    GLOBAL const T *p = x + outer * n1 * n2 * inner;
#else
    const i64 outer = (i64)row / m1, o1 = (i64)row - outer * m1;
    GLOBAL const T *p = x + outer * n1 * n2;
#endif
#ifdef EXTRAPOLATE
#define OUTSIDE(o1, o2) (i1[o1] < 0 || i2[o2] < 0)
#else
#define OUTSIDE(o1, o2) 0
#endif
#if defined(COPIES) && defined(CHANNELS)
    const i32 beyond = OUTSIDE(o1, o2);
    p += ((i64)i1[o1] * n2 + i2[o2]) * inner;
    if (beyond) {
      EACH(i) q[i] = outside;
    } else {
      EACH(i) q[i] = p[i];
    }
#elif defined(COPIES)
    p += (i64)i1[o1] * n2;
    EACH(i) q[i] = OUTSIDE(o1, i) ? outside : p[i2[i]];
#elif defined(CHANNELS)
    /* All taps of a row are the same: the loop over the channels has nothing else to look up. */
    A w[K1 * K2];
    i64 at[K1 * K2];
    UNROLL_TAPS
    for (i32 a = 0; a < K1; a++)
      UNROLL_TAPS
      for (i32 b = 0; b < K2; b++) {
        w[a * K2 + b] = w1[a * m1 + o1] * w2[b * m2 + o2];
        at[a * K2 + b] = ((i64)i1[a * m1 + o1] * n2 + i2[b * m2 + o2]) * inner;
      }
    const i32 beyond = OUTSIDE(o1, o2);
    EACH(i) {
      A sum = 0;
      if (!beyond)
        UNROLL_TAPS
        for (i32 k = 0; k < K1 * K2; k++) sum += w[k] * (A)LD_T(p, at[k] + i);
      STORE(q, i, beyond ? outside : sum);
    }
#else
    A w[K1];
    i64 at[K1];
    UNROLL_TAPS
    for (i32 a = 0; a < K1; a++) {
      w[a] = w1[a * m1 + o1];
      at[a] = (i64)i1[a * m1 + o1] * n2;
    }
    EACH(i) {
      A sum = 0;
      if (OUTSIDE(o1, i))
        sum = outside;
      else
        UNROLL_TAPS
        for (i32 b = 0; b < K2; b++) {
          const i32 column = i2[b * m2 + i];
          A part = 0;
          UNROLL_TAPS
          for (i32 a = 0; a < K1; a++) part += w[a] * (A)LD_T(p, at[a] + column);
          sum += w2[b * m2 + i] * part;
        }
      STORE(q, i, sum);
    }
#endif
  }
}
