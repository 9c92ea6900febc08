/* Resize of one axis, or of two neighbours at once. After rows.h. x is (outer, n1, n2, inner), y (outer, m1, m2, inner).
 *
 * Where to read, and with what weights, the host has worked out: K1 and K2 taps for each place of an axis, as tables of
 * (taps, places). A first index below 0 marks a place outside of the input, which gets a value of its own
 * (EXTRAPOLATE). CHANNELS: rows run over the inner elements, else inner is 1 and they run over the second axis.
 */

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
    const A sum = (v); \
    ST_D(q, i, sum < (A)LEAST ? (D)LEAST_D : sum > (A)MOST ? (D)MOST_D : (D)sum); \
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
    EACH(i) {
#ifdef CHANNELS
#define AT(a, b) (((i64)i1[(a) * m1 + o1] * n2 + i2[(b) * m2 + o2]) * inner + i)
#else
      const i64 o2 = i;
#define AT(a, b) ((i64)i1[(a) * m1 + o1] * n2 + i2[(b) * m2 + o2])
#endif
#ifdef EXTRAPOLATE
      if (i1[o1] < 0 || i2[o2] < 0)
        STORE(q, i, outside);
      else
#endif
      {
#ifdef COPIES
        q[i] = p[AT(0, 0)];
#else
        A sum = 0;
        for (i32 a = 0; a < K1; a++) {
          A part = 0;
          for (i32 b = 0; b < K2; b++) part += w2[b * m2 + o2] * (A)LD_T(p, AT(a, b));
          sum += w1[a * m1 + o1] * part;
        }
        STORE(q, i, sum);
#endif
      }
    }
  }
}
