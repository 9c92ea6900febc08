/* Rows of heads, put where GroupQueryAttention reads them: a row is a head of one token, its elements lie side by side.
 *
 * ends: position of the last key of each sequence. Of `queries` new tokens the last ones of a sequence are its own, as
 * many as it has keys; they follow `start` old ones. ROTARY turns the new rows by their positions. What is written:
 *   (neither)  y(sequence, head, token): the new rows, dense.
 *   CACHE      y(sequence, head, row): old rows of the past, then the new ones, zeros behind them.
 *   APPEND     the new rows alone, into a cache that holds the old ones.
 * With POSITIONS the angles' rows are given; with PROMPT too, only the first, from which the others count. */
ROW_KERNEL place_heads(INPUT(T, x), INPUT(i32, ends),
#ifdef PAST
                       INPUT(T, past), const i64 held,
#endif
#ifdef ROTARY
                       INPUT(T, cosines), INPUT(T, sines), const i32 half_, const i64 table,
#endif
#ifdef POSITIONS
                       INPUT(i64, positions),
#endif
                       TENSOR(T, y), const i64 x_b, const i64 x_h, const i64 x_t, const i32 heads, const i32 length,
                       const i32 queries, const i32 capacity, ROW_PARAMS) {
  OPEN_IN(T, x);
  OPEN_IN(i32, ends);
#ifdef PAST
  OPEN_IN(T, past);
#endif
#ifdef ROTARY
  OPEN_IN(T, cosines);
  OPEN_IN(T, sines);
#endif
#ifdef POSITIONS
  OPEN_IN(i64, positions);
#endif
  OPEN(T, y);
  EACH_ROW(row) {
    const i64 own = row % length, h = row / length % heads, b = row / length / heads;
    const i64 total = (i64)ends[b] + 1;
    const i64 fresh = total < queries ? total : queries, start = total - fresh;
#if defined(CACHE)
    const i64 token = own - start, to = row;
    const i32 is_new = token >= 0 && token < fresh;
#elif defined(APPEND)
    const i64 token = own, to = (b * heads + h) * capacity + start + own;
    const i32 is_new = token < fresh && start + own < capacity;
#else
    const i64 token = own, to = row;
    const i32 is_new = 1;
#endif
    const GLOBAL T *p = x + b * x_b + h * x_h + (is_new ? token : 0) * x_t;
    GLOBAL T *q = y + (is_new || to == row ? to : 0) * inner;
#ifdef ROTARY
    i64 at = start + token;
#ifdef PROMPT
    at = positions[0] + token;
#elif defined(POSITIONS)
    at = positions[b * queries + (is_new ? token : 0)];
#endif
    at = (at < 0 ? 0 : at >= table ? table - 1 : at) * half_;
#endif
    EACH(i) {
      if (is_new) {
        T_ACC v = LD_T(p, i);
#ifdef ROTARY
        if (i < 2 * half_) {
#ifdef INTERLEAVED
          const i32 k = (i32)i / 2, second = (i32)i % 2;
          const T_ACC other = LD_T(p, second ? i - 1 : i + 1);
#else
          const i32 second = i >= half_, k = (i32)i - (second ? half_ : 0);
          const T_ACC other = LD_T(p, second ? i - half_ : i + half_);
#endif
          const T_ACC c = LD_T(cosines, at + k), s = LD_T(sines, at + k);
          v = second ? s * other + c * v : c * v - s * other;
        }
#endif
        ST_T(q, i, v);
      }
#ifdef CACHE
#ifdef PAST
      else if (own < start && own < held) ST_T(q, i, LD_T(past, ((b * heads + h) * held + own) * inner + i));
#endif
      else ST_T(q, i, (T_ACC)0);
#endif
    }
  }
}
