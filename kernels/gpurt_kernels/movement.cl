/* Copies between two strided layouts of the same elements, as bits: T is an unsigned type of the element's size.
 *
 * RANK dimensions; of dimension d there are n<d> steps, of s<d> elements in the source and t<d> in the destination (any
 * sign; 0 in the source repeats). PARAMS declares n0, s0, t0, n1, ... as i64 arguments, SIZES, SOURCE and TARGET are
 * their initializer lists: the rank specialises the program, sizes do not.
 */

/* Without it PoCL neither unrolls loops with a constant count nor keeps small arrays in registers. */
#define UNROLL _Pragma("unroll")

#if defined(TILED) /* two dimensions change places: RANK counts only the others */

/* Element (a, b) is at a + b * sb in the source and at a * ta + b in the destination: both sides have a dimension of
 * stride 1, and not the same. A tile brings the reads and the writes of a group into whole cache lines. */

#define FIND_TILE \
  const i64 n[RANK] = SIZES; \
  const i64 s[RANK] = SOURCE; \
  const i64 t[RANK] = TARGET; \
  i64 rest = GROUP(0); \
  const i64 b0 = rest % tiles_b * TILE; \
  rest /= tiles_b; \
  const i64 a0 = rest % tiles_a * TILE; \
  rest /= tiles_a; \
  UNROLL \
  for (i32 d = RANK - 1; d >= 0; d--) { \
    const i64 i = rest % n[d]; \
    rest /= n[d]; \
    x += i * s[d]; \
    y += i * t[d]; \
  }

#ifdef GP_CPU_CLASS
KFN(1, 1, 1) transpose_tile(INPUT(T, x), TENSOR(T, y), const i64 na, const i64 nb, const i64 sb, const i64 ta,
                            const i64 tiles_a, const i64 tiles_b PARAMS) {
  OPEN_IN(T, x);
  OPEN(T, y);
  FIND_TILE
  const i64 a1 = a0 + TILE < na ? a0 + TILE : na;
  const i64 b1 = b0 + TILE < nb ? b0 + TILE : nb;
  i64 a = a0;
  for (; a + SIDE <= a1; a += SIDE) {
    i64 b = b0;
    for (; b + SIDE <= b1; b += SIDE) {
      /* A constant block in private memory: the compiler keeps it in registers and shuffles. */
      T block[SIDE * SIDE];
      UNROLL
      for (i32 j = 0; j < SIDE; j++)
        UNROLL
        for (i32 i = 0; i < SIDE; i++) block[i * SIDE + j] = x[a + i + (b + j) * sb];
      UNROLL
      for (i32 i = 0; i < SIDE; i++)
        UNROLL
        for (i32 j = 0; j < SIDE; j++) y[(a + i) * ta + b + j] = block[i * SIDE + j];
    }
    for (; b < b1; b++)
      UNROLL
      for (i32 i = 0; i < SIDE; i++) y[(a + i) * ta + b] = x[a + i + b * sb];
  }
  for (; a < a1; a++)
    for (i64 b = b0; b < b1; b++) y[a * ta + b] = x[a + b * sb];
}
#else
KFN(TILE, 8, 1) transpose_tile(INPUT(T, x), TENSOR(T, y), const i64 na, const i64 nb, const i64 sb, const i64 ta,
                               const i64 tiles_a, const i64 tiles_b PARAMS) {
  SHARED T tile[TILE * (TILE + 1)]; /* one more column than needed: a column's elements lie in different banks */
  OPEN_IN(T, x);
  OPEN(T, y);
  FIND_TILE
  const i32 i = ITEM(0);
  for (i32 j = ITEM(1); j < TILE; j += 8)
    if (a0 + i < na && b0 + j < nb) tile[j * (TILE + 1) + i] = x[a0 + i + (b0 + j) * sb];
  BARRIER;
  for (i32 j = ITEM(1); j < TILE; j += 8)
    if (b0 + i < nb && a0 + j < na) y[(a0 + j) * ta + b0 + i] = tile[i * (TILE + 1) + j];
}
#endif

#elif defined(GP_CPU_CLASS)

/* An item takes `per_item` rows of the last dimension, `chunk` elements of each. SX and SY are the last dimension's
 * strides where they are constants (0 or 1), so that the loop becomes a fill or a vector copy. */
KFN(1, 1, 1) strided_copy(INPUT(T, x), TENSOR(T, y), const i64 rows, const i64 per_item, const i64 chunk PARAMS) {
  OPEN_IN(T, x);
  OPEN(T, y);
  const i64 n[RANK] = SIZES;
  const i64 s[RANK] = SOURCE;
  const i64 t[RANK] = TARGET;
  i64 at[RANK];
  i64 from = 0, to = 0;
  const i64 first = GROUP(0) * per_item;
  const i64 last = first + per_item < rows ? first + per_item : rows;
  const i64 begin = GROUP(1) * chunk;
  const i64 count = n[RANK - 1] - begin < chunk ? n[RANK - 1] - begin : chunk;
  i64 rest = first;
  UNROLL
  for (i32 d = RANK - 2; d >= 0; d--) {
    at[d] = rest % n[d];
    rest /= n[d];
    from += at[d] * s[d];
    to += at[d] * t[d];
  }
  for (i64 row = first; row < last; row++) {
    GLOBAL const T *p = x + from + begin * (SX);
    GLOBAL T *q = y + to + begin * (SY);
    for (i64 i = 0; i < count; i++) q[i * (SY)] = p[i * (SX)];
    UNROLL
    for (i32 d = RANK - 2; d >= 0; d--) { /* the next row, without a division */
      at[d]++;
      from += s[d];
      to += t[d];
      if (at[d] < n[d]) break;
      at[d] = 0;
      from -= s[d] * n[d];
      to -= t[d] * n[d];
    }
  }
}

#else

/* An item takes one element; POS is i32 where all positions fit, as GPUs divide 64-bit integers slowly. */
KFN(256, 1, 1) strided_copy(INPUT(T, x), TENSOR(T, y), const POS total PARAMS) {
  OPEN_IN(T, x);
  OPEN(T, y);
  const i64 n[RANK] = SIZES;
  const i64 s[RANK] = SOURCE;
  const i64 t[RANK] = TARGET;
  POS rest = (POS)INDEX(0);
  if (rest >= total) return;
  i64 from = 0, to = 0;
  UNROLL
  for (i32 d = RANK - 1; d > 0; d--) {
    const POS q = rest / (POS)n[d];
    const POS i = rest - q * (POS)n[d];
    rest = q;
    from += i * s[d];
    to += i * t[d];
  }
  y[to + rest * t[0]] = x[from + rest * s[0]];
}
#endif
