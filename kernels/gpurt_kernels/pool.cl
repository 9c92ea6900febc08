/* Pools over windows of up to three axes of [N * C, D, H, W]; missing axes have size 1.
 *
 * START is what an empty window gives; ADD(a, v) takes an element in; END(a) finishes, with count the number of elements
 * that an average divides by. INDICES (MaxPool only) also stores the place of the maximum, as an offset into the tensor in
 * the order that the strides index_* say. TAPS_H and TAPS_W are the window where it is small enough to unroll, STRIDE_W
 * the step along the row where it is 1 or 2.
 */
#ifdef TAPS_H
#define TAPS_H_ TAPS_H
#define TAPS_W_ TAPS_W
#define DILATION_H_ 1
#define DILATION_W_ 1
#else
#define TAPS_H_ taps_h
#define TAPS_W_ taps_w
#define DILATION_H_ dilation_h
#define DILATION_W_ dilation_w
#endif
#ifdef INDICES
#define INDICES_PARAM TENSOR(i64, places),
#define OPEN_INDICES OPEN(i64, places)
#define INDEX_ARGS , const i64 index_d, const i64 index_h, const i64 index_w
#else
#define INDICES_PARAM
#define OPEN_INDICES
#define INDEX_ARGS
#endif

/* begin_* is the padding before the data, limit_* the size with the padding after it, which counts include. */
#define GEOMETRY \
  const i32 in_d, const i32 in_h, const i32 in_w, const i32 out_d, const i32 out_h, const i32 out_w, const i32 taps_d, \
      const i32 taps_h, const i32 taps_w, const i32 stride_d, const i32 stride_h, const i32 stride_w, \
      const i32 dilation_d, const i32 dilation_h, const i32 dilation_w, const i32 begin_d, const i32 begin_h, \
      const i32 begin_w, const i32 limit_d, const i32 limit_h, const i32 limit_w INDEX_ARGS

/* How many of n taps, from `at` on, lie below the limit; with the padding before the data or without it. */
FN i32 taps_within(i32 at, i32 step, i32 n, i32 limit, i32 with_padding) {
  i32 count = 0;
  for (i32 k = 0; k < n; k++) count += at + k * step < limit && (with_padding || at + k * step >= 0);
  return count;
}

#ifdef INCLUDE_PAD
#define COUNT_TAPS(at, step, n, size, limit) taps_within(at, step, n, limit, 1)
#else
#define COUNT_TAPS(at, step, n, size, limit) taps_within(at, step, n, size, 0)
#endif
#ifdef AVERAGE
#define COUNT_PLANE \
  (COUNT_TAPS(d0, dilation_d, taps_d, in_d, limit_d) * COUNT_TAPS(h0, DILATION_H_, TAPS_H_, in_h, limit_h))
#define COUNT_ROW COUNT_TAPS(w0, DILATION_W_, TAPS_W_, in_w, limit_w)
#else
#define COUNT_PLANE 1
#define COUNT_ROW 1
#endif

#ifdef INDICES
#define TAKE(v) \
  if (place < 0 || v > a) { \
    a = v; \
    place = d * index_d + h * index_h + w * index_w; \
  }
#else
#define TAKE(v) a = ADD(a, v)
#endif

/* One output, element by element; the window begins at (d0, h0, w0), which may lie in the padding. */
#define POOL_ONE(p, target) \
  { \
    A a = START; \
    i64 place = -1; \
    for (i32 kd = 0; kd < taps_d; kd++) { \
      const i32 d = d0 + kd * dilation_d; \
      if (d < 0 || d >= in_d) continue; \
      for (i32 kh = 0; kh < TAPS_H_; kh++) { \
        const i32 h = h0 + kh * DILATION_H_; \
        if (h < 0 || h >= in_h) continue; \
        const GLOBAL T *line = p + ((i64)d * in_h + h) * in_w; \
        for (i32 kw = 0; kw < TAPS_W_; kw++) { \
          const i32 w = w0 + kw * DILATION_W_; \
          if (w < 0 || w >= in_w) continue; \
          const A v = LD_T(line, w); \
          TAKE(v); \
        } \
      } \
    } \
    const i32 count = plane_count * COUNT_ROW; \
    ST_T(y, target, END(a)); \
    STORE_PLACE(target); \
  }
#ifdef INDICES
#define STORE_PLACE(target) places[target] = plane * in_d * in_h * in_w + place
#else
#define STORE_PLACE(target) (void)count, (void)place
#endif

#ifdef GP_CPU_CLASS

#if STRIDE_W == 1
#define LOAD_STEPPED(p, i) LD8_T(p, i)
#elif STRIDE_W == 2
/* Two overlapping reads, so that nothing after the fifteenth element is touched. */
FN A8 even8(A8 low, A8 high) { return (A8)(low.even, high.odd); }
#define LOAD_STEPPED(p, i) even8(LD8_T(p, i), LD8_T(p, (i) + 7))
#endif

/* A task is a row of the output. Where windows lie inside the data along the row, eight run side by side; the last eight
 * overlap those before rather than leaving a tail. */
KFN(1, 1, 1) pool(INPUT(T, x), TENSOR(T, y), INDICES_PARAM const i64 tasks, const i64 per, GEOMETRY) {
  OPEN_IN(T, x);
  OPEN(T, y);
  OPEN_INDICES;
  const i64 first = GROUP(0) * per;
  const i64 last = first + per < tasks ? first + per : tasks;
#if STRIDE_W > 0 && !defined(INDICES)
  i32 inside = (begin_w > 0 ? begin_w : 0) + STRIDE_W - 1;
  inside /= STRIDE_W;
  const i32 room = in_w - 1 + begin_w - (TAPS_W_ - 1) * DILATION_W_;
  i32 outside = room < 0 ? 0 : room / STRIDE_W + 1;
  if (outside > out_w) outside = out_w;
#else
  const i32 inside = out_w, outside = 0;
#endif
  for (i64 task = first; task < last; task++) {
    const i64 plane = task / ((i64)out_d * out_h);
    const i32 row = (i32)(task % ((i64)out_d * out_h));
    const i32 d0 = row / out_h * stride_d - begin_d, h0 = row % out_h * stride_h - begin_h;
    const GLOBAL T *p = x + plane * in_d * in_h * in_w;
    const i32 plane_count = COUNT_PLANE;
    i32 ow = 0;
    while (ow < out_w) {
#if STRIDE_W > 0 && !defined(INDICES)
      if (ow >= inside && outside - inside >= 8 && ow < outside) {
        const i32 column = ow + 8 <= outside ? ow : outside - 8;
        const i32 w0 = column * STRIDE_W - begin_w;
        A8 a = START;
        for (i32 kd = 0; kd < taps_d; kd++) {
          const i32 d = d0 + kd * dilation_d;
          if (d < 0 || d >= in_d) continue;
          for (i32 kh = 0; kh < TAPS_H_; kh++) {
            const i32 h = h0 + kh * DILATION_H_;
            if (h < 0 || h >= in_h) continue;
            const GLOBAL T *line = p + ((i64)d * in_h + h) * in_w + w0;
            for (i32 kw = 0; kw < TAPS_W_; kw++) {
              const A8 v = LOAD_STEPPED(line, kw * DILATION_W_);
              a = ADD(a, v);
            }
          }
        }
        const i32 count = plane_count * TAPS_W_;
        (void)count;
        ST8_T(y, task * out_w + column, END(a));
        ow = column + 8;
        continue;
      }
#endif
      const i32 w0 = ow * stride_w - begin_w;
      POOL_ONE(p, task * out_w + ow);
      ow++;
    }
  }
}

#else

/* An item is an output element. */
KFN(BLOCK, 1, 1) pool(INPUT(T, x), TENSOR(T, y), INDICES_PARAM const i64 tasks, const i64 per, GEOMETRY) {
  OPEN_IN(T, x);
  OPEN(T, y);
  OPEN_INDICES;
  const i64 task = INDEX(0);
  if (task >= tasks) return;
  const i64 line_of = task / out_w;
  const i64 plane = line_of / ((i64)out_d * out_h);
  const i32 row = (i32)(line_of % ((i64)out_d * out_h));
  const i32 d0 = row / out_h * stride_d - begin_d, h0 = row % out_h * stride_h - begin_h;
  const i32 w0 = (i32)(task % out_w) * stride_w - begin_w;
  const GLOBAL T *p = x + plane * in_d * in_h * in_w;
  const i32 plane_count = COUNT_PLANE;
  POOL_ONE(p, task);
}
#endif
