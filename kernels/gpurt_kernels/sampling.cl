/* Sampling between the elements: GridSample (GRID) and the columns of DeformConv (COLUMNS). After rows.h.
 *
 * DIMS axes n[] of a plane, K taps an axis: 1 nearest, 2 linear, 4 cubic (Keys, a = -0.75). PADDING says what a tap
 * outside of the plane reads: 0 nothing, 1 the border, 2 the plane mirrored. ALIGN: the corners are the centres of the
 * outermost elements, else their outer edges. T is the data's type, G the positions', A the one computed in.
 */
#if DIMS == 1
#define TAPS K
#elif DIMS == 2
#define TAPS (K * K)
#else
#define TAPS (K * K * K)
#endif
#define HALF ((A)0.5f)

#ifdef ALIGN
#define LOW(n) ((A)0)
#define HIGH(n) ((A)((n) - 1))
#define MIRROR 0
#else
#define LOW(n) (-HALF)
#define HIGH(n) ((A)(n) - HALF)
#define MIRROR 1
#endif

/* A tap's element for an index outside of the plane, or -1 where it counts as zero. */
FN i32 inside(i32 i, const i32 n) {
#if PADDING == 0
  return i < 0 || i >= n ? -1 : i;
#elif PADDING == 1
  return i < 0 ? 0 : i >= n ? n - 1 : i;
#else
  const i32 period = 2 * (n - 1 + MIRROR);
  if (period == 0) return 0;
  i = (i < 0 ? -i - MIRROR : i) % period;
  return i < n ? i : period - i - MIRROR;
#endif
}

/* Keeps the conversion to an integer defined: so far outside no tap comes near the plane. NaN goes there too. */
FN A bounded(const A x, const i32 n) {
  const A top = (A)n + (A)3;
  return x > (A)-4 ? (x < top ? x : top) : (A)-4;
}

#ifdef GRID
/* A position in [-1, 1] in elements, moved into the plane where the padding says so. */
FN A place(A x, const i32 n) {
#ifdef ALIGN
  x = (x + (A)1) * HALF * (A)(n - 1);
#else
  x = ((x + (A)1) * (A)n - (A)1) * HALF;
#endif
#if K == 1
  x = rint(x);
#endif
#if PADDING == 1
  if (x < LOW(n) || x > HIGH(n)) x = x < (A)0 ? (A)0 : x > (A)(n - 1) ? (A)(n - 1) : x;
#elif PADDING == 2
  if (x < LOW(n) || x > HIGH(n)) {
    const A range = HIGH(n) - LOW(n);
    const A r = range > (A)0 ? fmod(fabs(x - LOW(n)), (A)2 * range) : (A)0; /* exact, unlike a quotient */
    x = LOW(n) + (r > range ? (A)2 * range - r : r);
  }
#endif
  return bounded(x, n);
}
#endif

/* Weight of tap k for a position that is a fraction f beyond its element. */
FN A weight(const A f, const i32 k) {
#if K == 1
  return (A)1;
#elif K == 2
  return k == 0 ? (A)1 - f : f;
#else
  const A a = (A)-0.75f;
  const A x = fabs(f + (A)1 - (A)k);
  return x <= (A)1 ? ((a + (A)2) * x - (a + (A)3)) * x * x + (A)1 : ((a * x - (A)5 * a) * x + (A)8 * a) * x - (A)4 * a;
#endif
}

/* Element and weight of all taps of a point; POSITION is the place along axis d. */
#define FIND_TAPS(POSITION)                                            \
  i32 at[TAPS];                                                        \
  A w[TAPS];                                                           \
  i32 step = TAPS;                                                     \
  UNROLL for (i32 d = 0; d < DIMS; d++) {                              \
    const A position_d = (POSITION);                                   \
    const A floor_d = floor(position_d);                               \
    step /= K;                                                         \
    UNROLL for (i32 t = 0; t < TAPS; t++) {                            \
      const i32 k = t / step % K;                                      \
      const i32 i = inside((i32)floor_d + k - (K == 4), n[d]);         \
      const A part = weight(position_d - floor_d, k);                  \
      at[t] = d == 0 ? i : i < 0 || at[t] < 0 ? -1 : at[t] * n[d] + i; \
      w[t] = d == 0 ? part : w[t] * part;                              \
    }                                                                  \
  }

#if PADDING == 0
#define TAP(p, t) (at[t] < 0 ? (A)0 : (A)LD_T(p, at[t]))
#else
#define TAP(p, t) ((A)LD_T(p, at[t]))
#endif

#ifdef GRID
/* A row is a block of BLOCK_C channels of an image, its elements are the points, which share their taps. */
ROW_KERNEL grid_sample(INPUT(T, x), INPUT(G, grid), TENSOR(T, y), const i32 channels, const i64 plane, const i32 n_0,
                       const i32 n_1, const i32 n_2, ROW_PARAMS) {
  OPEN_IN(T, x);
  OPEN_IN(G, grid);
  OPEN(T, y);
  const i32 n[3] = {n_0, n_1, n_2};
  const i32 blocks = CEIL_DIV(channels, BLOCK_C);
  EACH_ROW(row) {
    const i64 image = row / blocks;
    const i32 first = (i32)(row % blocks) * BLOCK_C;
    const i32 last = first + BLOCK_C < channels ? first + BLOCK_C : channels;
    EACH(i) {
      const i64 point = (image * inner + i) * DIMS;
      FIND_TAPS(place((A)LD_G(grid, point + DIMS - 1 - d), n[d])) /* a point's last coordinate is the first axis */
      for (i32 c = first; c < last; c++) {
        const GLOBAL T *p = x + (image * channels + c) * plane;
        A sum = 0;
        UNROLL for (i32 t = 0; t < TAPS; t++) sum += w[t] * TAP(p, t);
        ST_T(y, (image * channels + c) * inner + i, sum);
      }
    }
  }
}
#endif

#ifdef COLUMNS
/* A row is a tap of the kernel in one group of offsets of one image: the samples for all output places, and for all
 * channels of the group. offset is (image, group, tap, axis, place), mask (image, group, tap, place), columns are
 * (image, channel, tap, place). */
ROW_KERNEL deform_columns(INPUT(T, x), INPUT(G, offset),
#ifdef MASK
                          INPUT(G, mask),
#endif
                          TENSOR(D, columns), const i32 groups, const i32 taps, const i32 per_group, const i32 n_0,
                          const i32 n_1, const i32 n_2, const i32 k_1, const i32 k_2, const i32 o_1, const i32 o_2,
                          const i32 stride_0, const i32 stride_1, const i32 stride_2, const i32 dilation_0,
                          const i32 dilation_1, const i32 dilation_2, const i32 pad_0, const i32 pad_1,
                          const i32 pad_2, ROW_PARAMS) {
  OPEN_IN(T, x);
  OPEN_IN(G, offset);
#ifdef MASK
  OPEN_IN(G, mask);
#endif
  OPEN(D, columns);
  const i32 n[3] = {n_0, n_1, n_2};
  const i32 stride[3] = {stride_0, stride_1, stride_2};
  const i32 dilation[3] = {dilation_0, dilation_1, dilation_2};
  const i32 pad[3] = {pad_0, pad_1, pad_2};
  i64 plane = 1;
  UNROLL for (i32 d = 0; d < DIMS; d++) plane *= n[d];
  EACH_ROW(row) {
    const i32 tap = (i32)(row % taps);
    const i64 group = row / taps; /* of all images */
    const i32 tap_at[3] = {tap / k_2 / k_1, tap / k_2 % k_1, tap % k_2};
    EACH(i) {
      const i32 o[3] = {(i32)(i / o_2 / o_1), (i32)(i / o_2 % o_1), (i32)(i % o_2)};
      /* A kernel of fewer axes has its own as the last ones of three. */
      FIND_TAPS(bounded((A)(o[d + 3 - DIMS] * stride[d] - pad[d] + tap_at[d + 3 - DIMS] * dilation[d]) +
                          (A)LD_G(offset, ((i64)row * DIMS + d) * inner + i), n[d]))
#ifdef MASK
      const A factor = (A)LD_G(mask, (i64)row * inner + i);
#else
      const A factor = (A)1;
#endif
      for (i32 c = 0; c < per_group; c++) {
        const i64 channel = group * per_group + c;
        const GLOBAL T *p = x + channel * plane;
        A sum = 0;
        UNROLL for (i32 t = 0; t < TAPS; t++) sum += w[t] * TAP(p, t);
        ST_D(columns, (channel * taps + tap) * inner + i, sum * factor);
      }
    }
  }
}
#endif
