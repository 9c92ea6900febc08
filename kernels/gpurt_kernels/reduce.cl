/* One step of a reduction: x seen as [outer, r, inner] becomes y of [outer, parts, inner].
 *
 * T is the type of x, A the one accumulated in, U the type of y. The operator is spelt by four macros:
 * IDENTITY; PRE(v) on each element; COMBINE(a, b); POST(s) on the result, with n the number of elements of the whole
 * reduction. WITH_MAX makes it a sum of exp(x - m), where m has the shape of y and holds the maxima (log-sum-exp).
 * The data come by chains.h. A long reduction is cut into parts of `length` elements that a second launch combines.
 *
 * Sums run in blocks that are added up afterwards, so the error grows with the block and not with the row.
 */
#ifdef WITH_MAX
#define MAX_PARAM INPUT(A, m),
#define OPEN_MAX OPEN_IN(A, m)
#define MAP(v) exp((v) - shift)
/* An infinite maximum must not meet itself: inf - inf is NaN, while exp(inf) and exp(-inf) are right. */
#define SHIFT(v) (isinf(v) ? (A)0 : (v))
#define FINISH(s) (log(s) + shift)
#else
#define MAX_PARAM
#define OPEN_MAX
#define MAP(v) PRE(v)
#define FINISH(s) POST(s)
#endif

#ifdef GP_CPU_CLASS

FN A fold8(A8 v) {
  const A a = COMBINE(v.s0, v.s4), b = COMBINE(v.s1, v.s5), c = COMBINE(v.s2, v.s6), d = COMBINE(v.s3, v.s7);
  const A ac = COMBINE(a, c), bd = COMBINE(b, d);
  return COMBINE(ac, bd);
}

/* Rows (inner is 1): an item takes `per` tasks, a task is a part of a row. */
KFN(1, 1, 1)
reduce_rows(DATA_PARAM MAX_PARAM TENSOR(U, y), EPILOGUE_PARAMS const i64 tasks, const i64 per, const i64 r, const i64 parts,
            const i64 length, const i64 n) {
  OPEN_DATA;
  OPEN_MAX;
  OPEN(U, y);
  EPILOGUE_OPEN;
  const i64 first = GROUP(0) * per;
  const i64 last = first + per < tasks ? first + per : tasks;
  for (i64 task = first; task < last; task++) {
    const i64 begin = task % parts * length;
    const i64 end = r - begin < length ? r : begin + length;
    SLICE(task / parts, r);
#ifdef WITH_MAX
    const A shift = SHIFT(m[task]);
#endif
    A total = IDENTITY;
    i64 i = begin;
    if (end - begin >= 8) {
      A8 sum = IDENTITY;
      while (i + 32 <= end) {
        A8 a0 = IDENTITY, a1 = IDENTITY, a2 = IDENTITY, a3 = IDENTITY;
        const i64 stop = i + 2048 < end ? i + 2048 : end;
        for (; i + 32 <= stop; i += 32) {
          const A8 v0 = ROW8(i), v1 = ROW8(i + 8), v2 = ROW8(i + 16), v3 = ROW8(i + 24);
          const A8 w0 = MAP(v0), w1 = MAP(v1), w2 = MAP(v2), w3 = MAP(v3);
          a0 = COMBINE(a0, w0);
          a1 = COMBINE(a1, w1);
          a2 = COMBINE(a2, w2);
          a3 = COMBINE(a3, w3);
        }
        a0 = COMBINE(a0, a1);
        a2 = COMBINE(a2, a3);
        a0 = COMBINE(a0, a2);
        sum = COMBINE(sum, a0);
      }
      for (; i + 8 <= end; i += 8) {
        const A8 v = ROW8(i);
        const A8 w = MAP(v);
        sum = COMBINE(sum, w);
      }
      total = fold8(sum);
    }
    for (; i < end; i++) {
      const A v = ROW1(i);
      const A w = MAP(v);
      total = COMBINE(total, w);
    }
    ST_U(y, task, DONE1(FINISH(total), task));
  }
}

/* Columns: a task is a part of the reduced axis for up to 32 neighbouring columns. */
KFN(1, 1, 1)
reduce_columns(DATA_PARAM MAX_PARAM TENSOR(U, y), EPILOGUE_PARAMS const i64 tasks, const i64 per, const i64 r, const i64 parts,
               const i64 length, const i64 n, const i64 inner) {
  OPEN_DATA;
  OPEN_MAX;
  OPEN(U, y);
  EPILOGUE_OPEN;
  const i64 blocks = CEIL_DIV(inner, 32);
  const i64 first = GROUP(0) * per;
  const i64 last = first + per < tasks ? first + per : tasks;
  for (i64 task = first; task < last; task++) {
    const i64 begin = task / blocks % parts * length;
    const i64 end = begin + length < r ? begin + length : r;
    SLICE(task / blocks / parts, r * inner);
    const i64 at = task / blocks * inner;
    i64 column = task % blocks * 32;
    const i64 stop = column + 32 < inner ? column + 32 : inner;
#ifndef WITH_MAX
    if (stop - column == 32) {
      A8 s0 = IDENTITY, s1 = IDENTITY, s2 = IDENTITY, s3 = IDENTITY;
      for (i64 k = begin; k < end;) {
        A8 a0 = IDENTITY, a1 = IDENTITY, a2 = IDENTITY, a3 = IDENTITY;
        const i64 until = k + 256 < end ? k + 256 : end;
        for (; k < until; k++) {
          const A8 v0 = AT8(k, column), v1 = AT8(k, column + 8), v2 = AT8(k, column + 16), v3 = AT8(k, column + 24);
          const A8 w0 = MAP(v0), w1 = MAP(v1), w2 = MAP(v2), w3 = MAP(v3);
          a0 = COMBINE(a0, w0);
          a1 = COMBINE(a1, w1);
          a2 = COMBINE(a2, w2);
          a3 = COMBINE(a3, w3);
        }
        s0 = COMBINE(s0, a0);
        s1 = COMBINE(s1, a1);
        s2 = COMBINE(s2, a2);
        s3 = COMBINE(s3, a3);
      }
      ST8_U(y, at + column, DONE8(FINISH(s0), at + column));
      ST8_U(y, at + column + 8, DONE8(FINISH(s1), at + column + 8));
      ST8_U(y, at + column + 16, DONE8(FINISH(s2), at + column + 16));
      ST8_U(y, at + column + 24, DONE8(FINISH(s3), at + column + 24));
      continue;
    }
#endif
    for (; column + 8 <= stop; column += 8) {
#ifdef WITH_MAX
      const A8 top = LD8_A(m, at + column);
      const A8 shift = isinf(top) ? (A8)0 : top;
#endif
      A8 sum = IDENTITY;
      for (i64 k = begin; k < end;) {
        A8 a = IDENTITY;
        const i64 until = k + 256 < end ? k + 256 : end;
        for (; k < until; k++) {
          const A8 v = AT8(k, column);
          const A8 w = MAP(v);
          a = COMBINE(a, w);
        }
        sum = COMBINE(sum, a);
      }
      ST8_U(y, at + column, DONE8(FINISH(sum), at + column));
    }
    for (; column < stop; column++) {
#ifdef WITH_MAX
      const A shift = SHIFT(m[at + column]);
#endif
      A total = IDENTITY;
      for (i64 k = begin; k < end;) {
        A a = IDENTITY;
        const i64 until = k + 256 < end ? k + 256 : end;
        for (; k < until; k++) {
          const A v = AT1(k, column);
          const A w = MAP(v);
          a = COMBINE(a, w);
        }
        total = COMBINE(total, a);
      }
      ST_U(y, at + column, DONE1(FINISH(total), at + column));
    }
  }
}

#else

/* Rows, by a group each: items stride through the row, a tree in local memory combines what they found. */
KFN(BLOCK, 1, 1)
reduce_rows(DATA_PARAM MAX_PARAM TENSOR(U, y), EPILOGUE_PARAMS const i64 r, const i64 parts, const i64 length, const i64 n) {
  SHARED A tile[BLOCK];
  OPEN_DATA;
  OPEN_MAX;
  OPEN(U, y);
  EPILOGUE_OPEN;
  const i64 task = GROUP(0);
  const i64 begin = task % parts * length;
  const i32 size = (i32)(r - begin < length ? r - begin : length);
  SLICE(task / parts, r);
  const i32 item = ITEM(0);
#ifdef WITH_MAX
  const A shift = SHIFT(m[task]);
#endif
  A a = IDENTITY;
  for (i32 i = item; i < size; i += BLOCK) {
    const A v = ROW1(begin + i);
    const A w = MAP(v);
    a = COMBINE(a, w);
  }
  tile[item] = a;
  BARRIER;
  for (i32 half_ = BLOCK / 2; half_ > 0; half_ >>= 1) {
    if (item < half_) {
      const A b = tile[item + half_];
      a = COMBINE(a, b);
      tile[item] = a;
    }
    BARRIER;
  }
  if (item == 0) ST_U(y, task, DONE1(FINISH(a), task));
}

/* One item for each element of y: columns, whose reads coalesce, and rows too short for a group. */
KFN(BLOCK, 1, 1)
reduce_columns(DATA_PARAM MAX_PARAM TENSOR(U, y), EPILOGUE_PARAMS const i64 tasks, const i64 r, const i64 parts, const i64 length,
               const i64 n, const i64 inner) {
  OPEN_DATA;
  OPEN_MAX;
  OPEN(U, y);
  EPILOGUE_OPEN;
  const i64 task = INDEX(0);
  if (task >= tasks) return;
  const i64 slice = task / inner;
  const i64 begin = slice % parts * length;
  const i64 end = begin + length < r ? begin + length : r;
  const i64 column = task % inner;
  SLICE(slice / parts, r * inner);
#ifdef WITH_MAX
  const A shift = SHIFT(m[task]);
#endif
  A total = IDENTITY;
  for (i64 k = begin; k < end;) {
    A a = IDENTITY;
    const i64 until = k + 256 < end ? k + 256 : end;
    for (; k < until; k++) {
      const A v = AT1(k, column);
      const A w = MAP(v);
      a = COMBINE(a, w);
    }
    total = COMBINE(total, a);
  }
  ST_U(y, task, DONE1(FINISH(total), task));
}
#endif
