/* Pools over windows of up to three axes of [N * C, D, H, W]; missing axes have size 1.
 *
 * START is what an empty window gives; ADD(a, v) takes an element in; COMBINE(a, b) joins two partial results; END(a)
 * finishes, with count the number of elements that an average divides by. INDICES (MaxPool only) also stores the place of the maximum, as an offset into the tensor in
 * the order that the strides index_* say. TAPS_H and TAPS_W are the window where it is small enough to unroll, STRIDE_W
 * the step along the row where it is 1 or 2, LINE how many columns of the data the CPU class works on at a time.
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
#ifdef AVERAGE
FN i32 taps_within(i32 at, i32 step, i32 n, i32 limit, i32 with_padding) {
  i32 count = 0;
  for (i32 k = 0; k < n; k++) count += at + k * step < limit && (with_padding || at + k * step >= 0);
  return count;
}

#endif

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
#define POOL_ONE(target) \
  { \
    A a = START; \
    i64 place = -1; \
    for (i32 kd = 0; kd < taps_d; kd++) { \
      const i32 d = d0 + kd * dilation_d; \
      if (d < 0 || d >= in_d) continue; \
      for (i32 kh = 0; kh < TAPS_H_; kh++) { \
        const i32 h = h0 + kh * DILATION_H_; \
        if (h < 0 || h >= in_h) continue; \
        SLICE((plane * in_d + d) * in_h + h, in_w); \
        for (i32 kw = 0; kw < TAPS_W_; kw++) { \
          const i32 w = w0 + kw * DILATION_W_; \
          if (w < 0 || w >= in_w) continue; \
          const A v = ROW1(w); \
          TAKE(v); \
        } \
      } \
    } \
    const A count = plane_count * COUNT_ROW; \
    const A pooled = END(a); \
    ST_T(y, target, DONE1(pooled, target)); \
    STORE_PLACE(target); \
  }
#ifdef INDICES
#define STORE_PLACE(target) places[target] = plane * in_d * in_h * in_w + place
#else
#define STORE_PLACE(target) (void)count, (void)place
#endif

#ifdef GP_CPU_CLASS

#ifdef LINE
#define AT8(i) (*(const A_any8 *)(line + (i)))
#if STRIDE_W == 1
#define TAP8(i) AT8(i)
#elif STRIDE_W == 2
/* The even ones of the first eight and, as the second read begins at 7, the odd ones of that. */
FN A8 even8(A8 low, A8 high) {
  return (A8)(low.s0, low.s2, low.s4, low.s6, high.s1, high.s3, high.s5, high.s7);
}
#define TAP8(i) even8(AT8(i), AT8((i) + 7))
#else
#define TAP8(i) \
  (A8)(line[i], line[(i) + stride_w], line[(i) + 2 * stride_w], line[(i) + 3 * stride_w], line[(i) + 4 * stride_w], \
       line[(i) + 5 * stride_w], line[(i) + 6 * stride_w], line[(i) + 7 * stride_w])
#endif

/* A task is a row of the output, done in pieces: first the window's rows are combined into one line, which is filled up
 * with START where it lies in the padding; then the line is pooled. Both run eight lanes wide, the last eight overlapping
 * those before rather than leaving a tail, and a window costs the sum of its sides instead of their product. */
KFN(1, 1, 1) pool(DATA_PARAM TENSOR(T, y), EPILOGUE_PARAMS const i64 tasks, const i64 per, GEOMETRY) {
  OPEN_DATA;
  OPEN(T, y);
  EPILOGUE_OPEN
  /* Lanes beyond the end of a short piece read what is behind it. */
  A line[LINE + 8 * STRIDE_MAX + 8] __attribute__((aligned(64)));
  const i64 first = GROUP(0) * per;
  const i64 last = first + per < tasks ? first + per : tasks;
  const i32 reach = (TAPS_W_ - 1) * DILATION_W_;
  const i32 piece = (LINE - reach - 1) / stride_w + 1;
#ifdef AVERAGE
  /* What each column of the piece `counted` divides by: rows share it, and most rows are one piece. */
  A counts[LINE + 8];
  i32 counted = -1;
#endif
  for (i32 i = 0; i < LINE + 8 * STRIDE_MAX + 8; i++) line[i] = START;
  for (i64 task = first; task < last; task++) {
    const i64 plane = task / ((i64)out_d * out_h);
    const i32 row = (i32)(task % ((i64)out_d * out_h));
    const i32 d0 = row / out_h * stride_d - begin_d, h0 = row % out_h * stride_h - begin_h;
    const GLOBAL T *p = x + plane * in_d * in_h * in_w;
#ifdef AVERAGE
    const i32 plane_count = COUNT_PLANE;
#endif
    for (i32 ow = 0; ow < out_w; ow += piece) {
      const i32 n = out_w - ow < piece ? out_w - ow : piece;
      const i32 start = ow * stride_w - begin_w, span = (n - 1) * stride_w + reach + 1;
      i32 low = start < 0 ? -start : 0, high = in_w - start < span ? in_w - start : span;
#ifdef AVERAGE
      if (counted != ow) {
        counted = ow;
        for (i32 k = 0; k < n + 7; k++) {
          const i32 w0 = start + k * stride_w;
          counts[k] = k < n ? COUNT_ROW : 1;
        }
      }
#endif
      if (low > span) low = span;
      if (high < low) high = low;
      for (i32 i = 0; i < low; i++) line[i] = START;
      for (i32 i = high; i < span; i++) line[i] = START;
      i32 i = low;
      while (i < high) {
        const i32 wide = high - low >= 8;
        if (wide && i + 8 > high) i = high - 8;
        A8 a = START;
        A b = START;
        for (i32 kd = 0; kd < taps_d; kd++) {
          const i32 d = d0 + kd * dilation_d;
          if (d < 0 || d >= in_d) continue;
          for (i32 kh = 0; kh < TAPS_H_; kh++) {
            const i32 h = h0 + kh * DILATION_H_;
            if (h < 0 || h >= in_h) continue;
            const GLOBAL T *q = p + ((i64)d * in_h + h) * in_w + start + i;
            if (wide) {
              const A8 v = LD8_T(q, 0);
              a = ADD(a, v);
            } else {
              const A v = LD_T(q, 0);
              b = ADD(b, v);
            }
          }
        }
        if (wide) {
          *(A_any8 *)(line + i) = a;
          i += 8;
        } else {
          line[i++] = b;
        }
      }
      GLOBAL T *q = y + task * out_w + ow;
      for (i32 j = 0; j < n; j += 8) {
        if (n >= 8 && j + 8 > n) j = n - 8;
        A8 a = START;
        for (i32 kw = 0; kw < TAPS_W_; kw++) {
          const A8 v = TAP8(j * stride_w + kw * DILATION_W_);
          a = COMBINE(a, v);
        }
#ifdef AVERAGE
        const A8 count = *(const A_any8 *)(counts + j) * (A)plane_count;
#endif
        const A8 result = END(a);
        if (n >= 8) {
          ST8_T(q, j, DONE8(result, task * out_w + ow + j));
          continue;
        }
        A lane[8] __attribute__((aligned(64)));
        *(A8 *)lane = result;
        for (i32 k = 0; k < n; k++) ST_T(q, k, DONE1(lane[k], task * out_w + ow + k));
      }
    }
  }
}

#else

/* Windows wider than a line, and MaxPool with places: a task is a row of the output. */
KFN(1, 1, 1) pool(DATA_PARAM TENSOR(T, y), INDICES_PARAM EPILOGUE_PARAMS const i64 tasks, const i64 per, GEOMETRY) {
  OPEN_DATA;
  OPEN(T, y);
  EPILOGUE_OPEN
  OPEN_INDICES;
  const i64 first = GROUP(0) * per;
  const i64 last = first + per < tasks ? first + per : tasks;
  for (i64 task = first; task < last; task++) {
    const i64 plane = task / ((i64)out_d * out_h);
    const i32 row = (i32)(task % ((i64)out_d * out_h));
    const i32 d0 = row / out_h * stride_d - begin_d, h0 = row % out_h * stride_h - begin_h;
    const i32 plane_count = COUNT_PLANE;
    for (i32 ow = 0; ow < out_w; ow++) {
      const i32 w0 = ow * stride_w - begin_w;
      POOL_ONE(task * out_w + ow);
    }
  }
}
#endif

#else

/* An item is an output element. */
KFN(BLOCK, 1, 1) pool(DATA_PARAM TENSOR(T, y), INDICES_PARAM EPILOGUE_PARAMS const i64 tasks, const i64 per, GEOMETRY) {
  OPEN_DATA;
  OPEN(T, y);
  EPILOGUE_OPEN
  OPEN_INDICES;
  const i64 task = INDEX(0);
  if (task >= tasks) return;
  const i64 line_of = task / out_w;
  const i64 plane = line_of / ((i64)out_d * out_h);
  const i32 row = (i32)(line_of % ((i64)out_d * out_h));
  const i32 d0 = row / out_h * stride_d - begin_d, h0 = row % out_h * stride_h - begin_h;
  const i32 w0 = (i32)(task % out_w) * stride_w - begin_w;
  const i32 plane_count = COUNT_PLANE;
  POOL_ONE(task);
}
#endif
