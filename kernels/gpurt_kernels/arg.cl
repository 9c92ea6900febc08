/* Positions of extremes: x seen as [outer, r, inner], y is i64 of [outer, inner].
 *
 * BETTER(a, b) says whether a is strictly more extreme than b, where a NaN beats every number; PICK(a, b) is the more
 * extreme of two. With LAST the last of equals counts, otherwise the first.
 */
#ifdef LAST
#define REPLACES(a, b) (!BETTER(b, a))
#else
#define REPLACES(a, b) BETTER(a, b)
#endif

#ifdef GP_CPU_CLASS

/* Rows: the extreme is found eight lanes at a time; then the row, now in the cache, is searched for it. */
KFN(1, 1, 1)
arg_rows(INPUT(T, x), TENSOR(i64, y), const i64 tasks, const i64 per, const i64 r, const i64 inner) {
  OPEN_IN(T, x);
  OPEN(i64, y);
  const i64 first = GROUP(0) * per;
  const i64 last = first + per < tasks ? first + per : tasks;
  for (i64 task = first; task < last; task++) {
    const GLOBAL T *p = x + task * r;
    A best = LD_T(p, 0);
    i64 i = 1;
    if (r >= 16) {
      A8 a = LD8_T(p, 0);
      for (i = 8; i + 8 <= r; i += 8) {
        const A8 v = LD8_T(p, i);
        a = PICK(a, v);
      }
      best = PICK(a.s0, a.s1);
      best = PICK(best, a.s2);
      best = PICK(best, a.s3);
      best = PICK(best, a.s4);
      best = PICK(best, a.s5);
      best = PICK(best, a.s6);
      best = PICK(best, a.s7);
    }
    for (; i < r; i++) {
      const A v = LD_T(p, i);
      best = PICK(best, v);
    }
    const i32 nan = best != best;
#ifdef LAST
    for (i = r - 1; i > 0; i--) {
#else
    for (i = 0; i + 1 < r; i++) {
#endif
      const A v = LD_T(p, i);
      if (nan ? v != v : v == best) break;
    }
    y[task] = i;
  }
}

/* Columns: a task is up to 32 neighbouring columns; the position is kept in a lane beside the value. */
KFN(1, 1, 1)
arg_columns(INPUT(T, x), TENSOR(i64, y), const i64 tasks, const i64 per, const i64 r, const i64 inner) {
  OPEN_IN(T, x);
  OPEN(i64, y);
  const i64 blocks = CEIL_DIV(inner, 32);
  const i64 first = GROUP(0) * per;
  const i64 last = first + per < tasks ? first + per : tasks;
  for (i64 task = first; task < last; task++) {
    const GLOBAL T *p = x + task / blocks * r * inner;
    GLOBAL i64 *q = y + task / blocks * inner;
    i64 column = task % blocks * 32;
    const i64 stop = column + 32 < inner ? column + 32 : inner;
    for (; column + 8 <= stop; column += 8) {
      A8 best = LD8_T(p, column);
      I8 position = 0;
      for (i32 k = 1; k < r; k++) {
        const A8 v = LD8_T(p, k * inner + column);
        const I8 found = REPLACES(v, best);
        best = found ? v : best;
        position = found ? (I8)(k) : position;
      }
      const long8 wide = convert_long8(position);
      q[column] = wide.s0;
      q[column + 1] = wide.s1;
      q[column + 2] = wide.s2;
      q[column + 3] = wide.s3;
      q[column + 4] = wide.s4;
      q[column + 5] = wide.s5;
      q[column + 6] = wide.s6;
      q[column + 7] = wide.s7;
    }
    for (; column < stop; column++) {
      A best = LD_T(p, column);
      i64 position = 0;
      for (i64 k = 1; k < r; k++) {
        const A v = LD_T(p, k * inner + column);
        if (REPLACES(v, best)) {
          best = v;
          position = k;
        }
      }
      q[column] = position;
    }
  }
}

#else

/* Rows, by a group each. In the tree positions decide between equals, so the order of combining does not matter. */
KFN(BLOCK, 1, 1)
arg_rows(INPUT(T, x), TENSOR(i64, y), const i64 r, const i64 inner) {
  SHARED A values[BLOCK];
  SHARED i64 positions[BLOCK];
  OPEN_IN(T, x);
  OPEN(i64, y);
  const GLOBAL T *p = x + GROUP(0) * r;
  const i32 item = ITEM(0);
  /* An item beyond the end starts with element 0, which is somebody's anyway. */
  i64 position = item < r ? item : 0;
  A best = LD_T(p, position);
  for (i64 k = item + BLOCK; k < r; k += BLOCK) {
    const A v = LD_T(p, k);
    if (REPLACES(v, best)) {
      best = v;
      position = k;
    }
  }
  values[item] = best;
  positions[item] = position;
  BARRIER;
  for (i32 half_ = BLOCK / 2; half_ > 0; half_ >>= 1) {
    if (item < half_) {
      const A v = values[item + half_];
      const i64 k = positions[item + half_];
#ifdef LAST
      if (BETTER(v, best) || (!BETTER(best, v) && k > position)) {
#else
      if (BETTER(v, best) || (!BETTER(best, v) && k < position)) {
#endif
        best = v;
        position = k;
        values[item] = best;
        positions[item] = position;
      }
    }
    BARRIER;
  }
  if (item == 0) y[GROUP(0)] = position;
}

/* One item for each element of y. */
KFN(BLOCK, 1, 1)
arg_columns(INPUT(T, x), TENSOR(i64, y), const i64 tasks, const i64 r, const i64 inner) {
  OPEN_IN(T, x);
  OPEN(i64, y);
  const i64 task = INDEX(0);
  if (task >= tasks) return;
  const GLOBAL T *p = x + task / inner * r * inner + task % inner;
  A best = LD_T(p, 0);
  i64 position = 0;
  for (i64 k = 1; k < r; k++) {
    const A v = LD_T(p, k * inner);
    if (REPLACES(v, best)) {
      best = v;
      position = k;
    }
  }
  y[task] = position;
}
#endif
