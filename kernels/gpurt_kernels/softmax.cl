/* Softmax and LogSoftmax along the middle axis of [outer, r, inner]. The maximum is taken off first, so nothing overflows.
 *
 * T is the element type, A the one computed in. LOG makes it the logarithm. KEEP (T and A are the same) stores the
 * exponentials in y and scales them afterwards; without it they are computed twice, as half would round them.
 * A prologue (see chains.h) is computed once, into y, which then is the data.
 */
/* Where a kernel over columns reads its data, and how the data gets there. */
#ifdef PROLOGUE
#define DATA q
#define BRING(column)               \
  for (i32 k = 0; k < r; k++) {     \
    const A v = AT1(k, column);     \
    ST_T(q, k * inner, v);          \
  }
#else
#define DATA (p + column)
#define BRING(column)
#endif

/* exp(v - top), or what is left of the logarithm when the sum is known */
#ifdef LOG
#define RESULT(v) ((v) - top - scale)
#define SCALE(sum) log(sum)
#else
#define RESULT(v) (exp((v) - top) * scale)
#define SCALE(sum) (1 / (sum))
#endif

/* One column, whose first element is number `first` of the result and lies at q there. */
#define ONE_COLUMN(first)                                                           \
  BRING(column)                                                                     \
  const GLOBAL T *d = DATA;                                                         \
  A top = LD_T(d, 0);                                                               \
  for (i32 k = 1; k < r; k++) top = fmax(top, LD_T(d, k * inner));                  \
  A sum = 0;                                                                        \
  for (i32 k = 0; k < r; k++) sum += exp(LD_T(d, k * inner) - top);                 \
  const A scale = SCALE(sum);                                                       \
  for (i32 k = 0; k < r; k++) {                                                     \
    const A v = LD_T(d, k * inner);                                                 \
    ST_T(q, k * inner, DONE1(RESULT(v), (first) + k * inner));                      \
  }

#ifdef GP_CPU_CLASS

#ifdef LOG
#define RESULT8(v) RESULT(v)
#else
#define RESULT8(v) (exp8((v) - top) * scale)
#endif

/* exp of lanes that are never positive. The runtime's own is a call that spills registers, which costs as much again. */
#ifdef FLOAT_LANES
FN A8 exp8(A8 v) {
  const A8 k = (v * 1.44269504f + 12582912.0f) - 12582912.0f;
  const A8 r = (v - k * 0.693359375f) - k * -2.12194440e-4f;
  A8 p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  /* Below 2^-126 is zero, as it is for -inf; the comparison is false for NaN, which p then carries. */
  return v < -87.3f ? (A8)0 : p * as_float8((convert_int8(k) + 127) << 23);
}
#else
#define exp8(v) exp(v)
#endif

/* Rows: a task is a row. The tail of a row is padded to eight lanes, as a scalar exp costs as much as eight. */
KFN(1, 1, 1)
softmax_rows(DATA_PARAM TENSOR(T, y), EPILOGUE_PARAMS const i64 tasks, const i64 per, const i32 r, const i64 inner) {
  OPEN_DATA;
  OPEN(T, y);
  EPILOGUE_OPEN;
  const i64 first = GROUP(0) * per;
  const i64 last = first + per < tasks ? first + per : tasks;
  for (i64 task = first; task < last; task++) {
    SLICE(task, r);
    GLOBAL T *q = y + task * r;
    const i32 whole = r & ~7;
#ifdef PROLOGUE
    const GLOBAL T *p = q;
    for (i32 i = 0; i < whole; i += 8) ST8_T(q, i, ROW8(i));
    for (i32 i = whole; i < r; i++) {
      const A v = ROW1(i);
      ST_T(q, i, v);
    }
#endif
    A tail[8] __attribute__((aligned(64)));
    for (i32 k = 0; k < 8; k++) tail[k] = whole + k < r ? LD_T(p, whole + k) : (A)-INFINITY;
    const A8 rest = *(const A8 *)tail;
    A8 tops = rest;
    for (i32 i = 0; i < whole; i += 8) {
      const A8 v = LD8_T(p, i);
      tops = v > tops ? v : tops;
    }
    const A t0 = fmax(tops.s0, tops.s1), t1 = fmax(tops.s2, tops.s3), t2 = fmax(tops.s4, tops.s5);
    const A top = fmax(fmax(t0, t1), fmax(t2, fmax(tops.s6, tops.s7)));
    A8 sums = 0;
    for (i32 i = 0; i < whole;) {
      A8 block = 0;
      const i32 stop = i + 2048 < whole ? i + 2048 : whole;
      for (; i < stop; i += 8) {
        const A8 v = LD8_T(p, i);
        const A8 e = exp8(v - top);
#ifdef KEEP
        ST8_T(q, i, e);
#endif
        block += e;
      }
      sums += block;
    }
    /* In a row of -inf only, the padding would count as the row's own elements: it is NaN in both. */
    const A8 end = exp8(rest - top);
    if (whole < r) sums += end;
    const A sum = ((sums.s0 + sums.s4) + (sums.s1 + sums.s5)) + ((sums.s2 + sums.s6) + (sums.s3 + sums.s7));
    const A scale = SCALE(sum);
    for (i32 i = 0; i < whole; i += 8) {
#ifdef KEEP
      const A8 e = *(const GLOBAL T_any8 *)(q + i);
      ST8_T(q, i, DONE8(e * scale, task * r + i));
#else
      const A8 v = LD8_T(p, i);
      ST8_T(q, i, DONE8(RESULT8(v), task * r + i));
#endif
    }
#ifdef LOG
    *(A8 *)tail = rest - top - scale;
#else
    *(A8 *)tail = end * scale;
#endif
    for (i32 k = 0; whole + k < r; k++) ST_T(q, whole + k, DONE1(tail[k], task * r + whole + k));
  }
}

/* Columns: a task is up to 64 neighbouring columns, eight at a time, so that cache lines are used whole. */
KFN(1, 1, 1)
softmax_columns(DATA_PARAM TENSOR(T, y), EPILOGUE_PARAMS const i64 tasks, const i64 per, const i32 r, const i64 inner) {
  OPEN_DATA;
  OPEN(T, y);
  EPILOGUE_OPEN;
  const i64 blocks = CEIL_DIV(inner, 64);
  const i64 first = GROUP(0) * per;
  const i64 last = first + per < tasks ? first + per : tasks;
  for (i64 task = first; task < last; task++) {
    const i64 at = task / blocks * r * inner;
    i64 column = task % blocks * 64;
    const i64 stop = column + 64 < inner ? column + 64 : inner;
    SLICE(task / blocks, r * inner);
    for (; column + 8 <= stop; column += 8) {
      GLOBAL T *q = y + at + column;
#ifdef PROLOGUE
      for (i32 k = 0; k < r; k++) ST8_T(q, k * inner, AT8(k, column));
#endif
      const GLOBAL T *d = DATA;
      A8 top = LD8_T(d, 0);
      for (i32 k = 1; k < r; k++) {
        const A8 v = LD8_T(d, k * inner);
        top = v > top ? v : top;
      }
      A8 sum = 0;
      for (i32 k = 0; k < r; k++) {
        const A8 v = LD8_T(d, k * inner);
        const A8 e = exp8(v - top);
#ifdef KEEP
        ST8_T(q, k * inner, e);
#endif
        sum += e;
      }
      const A8 scale = SCALE(sum);
      for (i32 k = 0; k < r; k++) {
#ifdef KEEP
        const A8 e = *(const GLOBAL T_any8 *)(q + k * inner);
        ST8_T(q, k * inner, DONE8(e * scale, at + k * inner + column));
#else
        const A8 v = LD8_T(d, k * inner);
        ST8_T(q, k * inner, DONE8(RESULT8(v), at + k * inner + column));
#endif
      }
    }
    for (; column < stop; column++) {
      GLOBAL T *q = y + at + column;
      ONE_COLUMN(at + column);
    }
  }
}

#else

/* Rows, by a group each. */
KFN(BLOCK, 1, 1)
softmax_rows(DATA_PARAM TENSOR(T, y), EPILOGUE_PARAMS const i32 r, const i64 inner) {
  SHARED A tile[BLOCK];
  OPEN_DATA;
  OPEN(T, y);
  EPILOGUE_OPEN;
  SLICE((i64)GROUP(0), r);
  GLOBAL T *q = y + (i64)GROUP(0) * r;
  const i32 item = ITEM(0);
#ifdef PROLOGUE
  const GLOBAL T *p = q; /* an item reads what it has written itself */
  for (i32 i = item; i < r; i += BLOCK) {
    const A v = ROW1(i);
    ST_T(q, i, v);
  }
#endif
  A top = -INFINITY;
  for (i32 i = item; i < r; i += BLOCK) top = fmax(top, LD_T(p, i));
  tile[item] = top;
  BARRIER;
  for (i32 half_ = BLOCK / 2; half_ > 0; half_ >>= 1) {
    if (item < half_) tile[item] = fmax(tile[item], tile[item + half_]);
    BARRIER;
  }
  top = tile[0];
  BARRIER;
  A sum = 0;
  for (i32 i = item; i < r; i += BLOCK) sum += exp(LD_T(p, i) - top);
  tile[item] = sum;
  BARRIER;
  for (i32 half_ = BLOCK / 2; half_ > 0; half_ >>= 1) {
    if (item < half_) tile[item] += tile[item + half_];
    BARRIER;
  }
  const A scale = SCALE(tile[0]);
  for (i32 i = item; i < r; i += BLOCK) {
    const A v = LD_T(p, i);
    ST_T(q, i, DONE1(RESULT(v), (i64)GROUP(0) * r + i));
  }
}

/* One item for each column, or for each row that is too short for a group. */
KFN(BLOCK, 1, 1)
softmax_columns(DATA_PARAM TENSOR(T, y), EPILOGUE_PARAMS const i64 tasks, const i32 r, const i64 inner) {
  OPEN_DATA;
  OPEN(T, y);
  EPILOGUE_OPEN;
  const i64 task = INDEX(0);
  if (task >= tasks) return;
  const i64 slice = task / inner, column = task % inner;
  SLICE(slice, r * inner);
  const i64 at = slice * r * inner + column;
  GLOBAL T *q = y + at;
  ONE_COLUMN(at);
}
#endif
