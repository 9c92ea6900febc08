/* Running sums and products along the middle axis of [outer, r, inner], and the k best along it.
 *
 * STEP(a, v) is a + v or a * v, START its neutral element. EXCLUSIVE leaves the element itself out, REVERSE runs from
 * the end. A is the type accumulated in: a running sum of half values rounds only when it is stored.
 */
#ifdef REVERSE
#define PLACE(k) (r - 1 - (k))
#else
#define PLACE(k) (k)
#endif

#ifdef GP_CPU_CLASS

/* A task is one row, or up to 32 neighbouring columns, of which eight run side by side. */
KFN(1, 1, 1)
cumulate(INPUT(T, x), TENSOR(T, y), const i64 tasks, const i64 per, const i64 r, const i64 inner) {
  OPEN_IN(T, x);
  OPEN(T, y);
  const i64 blocks = CEIL_DIV(inner, 32);
  const i64 first = GROUP(0) * per;
  const i64 last = first + per < tasks ? first + per : tasks;
  for (i64 task = first; task < last; task++) {
    const i64 at = task / blocks * r * inner;
    i64 column = task % blocks * 32;
    const i64 stop = column + 32 < inner ? column + 32 : inner;
    for (; column + 8 <= stop; column += 8) {
      A8 a = START;
      for (i64 k = 0; k < r; k++) {
        const i64 i = at + PLACE(k) * inner + column;
        const A8 v = LD8_T(x, i);
        const A8 next = STEP(a, v);
#ifdef EXCLUSIVE
        ST8_T(y, i, a);
#else
        ST8_T(y, i, next);
#endif
        a = next;
      }
    }
    for (; column < stop; column++) {
      A a = START;
      for (i64 k = 0; k < r; k++) {
        const i64 i = at + PLACE(k) * inner + column;
        const A v = LD_T(x, i);
        const A next = STEP(a, v);
#ifdef EXCLUSIVE
        ST_T(y, i, a);
#else
        ST_T(y, i, next);
#endif
        a = next;
      }
    }
  }
}

#else

/* One item for each column or short row. */
KFN(BLOCK, 1, 1)
cumulate(INPUT(T, x), TENSOR(T, y), const i64 tasks, const i64 r, const i64 inner) {
  OPEN_IN(T, x);
  OPEN(T, y);
  const i64 task = INDEX(0);
  if (task >= tasks) return;
  const i64 at = task / inner * r * inner + task % inner;
  A a = START;
  for (i64 k = 0; k < r; k++) {
    const i64 i = at + PLACE(k) * inner;
    const A v = LD_T(x, i);
    const A next = STEP(a, v);
#ifdef EXCLUSIVE
    ST_T(y, i, a);
#else
    ST_T(y, i, next);
#endif
    a = next;
  }
}

/* Rows, by a group each: BLOCK elements at a time are scanned in local memory (Hillis and Steele), what came before is
 * carried along. Every item runs every round, so no barrier diverges. */
KFN(BLOCK, 1, 1)
cumulate_rows(INPUT(T, x), TENSOR(T, y), const i64 r) {
  SHARED A tile[BLOCK];
  OPEN_IN(T, x);
  OPEN(T, y);
  const i64 at = GROUP(0) * r;
  const i32 item = ITEM(0);
  A carry = START;
  for (i64 base = 0; base < r; base += BLOCK) {
    const i64 k = base + item;
    A v = START;
    if (k < r) v = LD_T(x, at + PLACE(k));
    tile[item] = v;
    BARRIER;
    for (i32 reach = 1; reach < BLOCK; reach <<= 1) {
      A before = START;
      if (item >= reach) before = tile[item - reach];
      BARRIER;
      if (item >= reach) {
        v = STEP(before, v);
        tile[item] = v;
      }
      BARRIER;
    }
    if (k < r) {
#ifdef EXCLUSIVE
      A before = START;
      if (item > 0) before = tile[item - 1];
      ST_T(y, at + PLACE(k), STEP(carry, before));
#else
      ST_T(y, at + PLACE(k), STEP(carry, v));
#endif
    }
    const A whole = tile[BLOCK - 1];
    carry = STEP(carry, whole);
    BARRIER;
  }
}
#endif
