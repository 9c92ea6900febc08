/* The k best along the middle axis of [outer, r, inner], best first, with their positions; equals by lower position.
 *
 * One item keeps the sorted list of one row or column in the outputs themselves: most elements meet only its last entry.
 * BETTER(a, b) says whether a is strictly better than b; a NaN counts as the largest number.
 */
KFN(BLOCK, 1, 1)
top_k(INPUT(T, x), TENSOR(T, y), TENSOR(i64, at), const i64 tasks, const i64 per, const i64 r, const i64 inner,
      const i64 n) {
  OPEN_IN(T, x);
  OPEN(T, y);
  OPEN(i64, at);
  const i64 first = INDEX(0) * per;
  const i64 last = first + per < tasks ? first + per : tasks;
  for (i64 task = first; task < last; task++) {
    const GLOBAL T *p = x + task / inner * r * inner + task % inner;
    GLOBAL T *values = y + task / inner * n * inner + task % inner;
    GLOBAL i64 *places = at + task / inner * n * inner + task % inner;
    i64 held = 0;
    A worst = 0;
    for (i64 i = 0; i < r; i++) {
      const A v = LD_T(p, i * inner);
      if (held == n && !BETTER(v, worst)) continue;
      i64 k = held < n ? held++ : n - 1;
      for (; k > 0; k--) {
        const A above = LD_T(values, (k - 1) * inner);
        if (!BETTER(v, above)) break;
        ST_T(values, k * inner, above);
        places[k * inner] = places[(k - 1) * inner];
      }
      ST_T(values, k * inner, v);
      places[k * inner] = i;
      worst = LD_T(values, (held - 1) * inner);
    }
  }
}
