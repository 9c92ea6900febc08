/* What lies between the two products of Attention: soft cap, masks and softmax of the scores, in place.
 *
 * scores: (batch, heads, rows, ld) of A, one row for each query; row 0 of the part is query `first`. Causality, windows,
 * the keys that are no padding and the length of the mask leave an interval [lo, hi) of keys to a query; only the mask
 * itself is looked up element by element. A query without any key gets zeros. M: type of the mask, with a stride for
 * batch, head and query. VALID: sequences have numbers of keys of their own, of N; with VALID_LAST it is the last key's
 * position, and the first query stands at 0 where there are fewer keys than queries. QK: the scores are wanted as an output too, of the T type: 0 as they are, 1 after the cap,
 * 2 with the masks, 3 after the softmax.
 */

#ifdef MASK_BOOL
#define MASKED(v, i) (LD_M(bias, i) ? (v) : (A)-INFINITY)
#define MASKED8(v, i) (LD8_M(bias, i) != (A8)(0) ? (v) : (A8)(-INFINITY))
#elif defined(MASK)
#define MASKED(v, i) ((v) + (A)LD_M(bias, i))
#define MASKED8(v, i) ((v) + LD8_M(bias, i))
#else
#define MASKED(v, i) (v)
#define MASKED8(v, i) (v)
#endif
#ifdef CAP
#define CAPPED(v) (cap * tanh((v) / cap))
#else
#define CAPPED(v) (v)
#endif
#ifdef MASK
#define OPEN_MASK OPEN_IN(M, mask);
#define ROW_MASK const GLOBAL M *bias = mask + (i64)b * mask_b + (i64)h * mask_h + (i64)query * mask_q;
#else
#define OPEN_MASK
#define ROW_MASK
#endif

/* The part of a row that every class needs: where it is, and its interval of keys. */
#define FIND_ROW(row)                                                                                \
  const i32 query = (i32)((row) % rows) + first;                                                     \
  const i32 h = (i32)((row) / rows % heads), b = (i32)((row) / rows / heads);                        \
  ROW_MASK                                                                                           \
  GLOBAL A *s = scores + (row) * ld;                                                                 \
  const i32 valid = VALID_KEYS;                                                                      \
  const i64 here = (i64)query + START; /* the query's position among the keys */                     \
  i64 low = left >= 0 ? here - left : 0, high = right >= 0 ? here + right + 1 : keys;                \
  high = high < mask_keys ? high : mask_keys;                                                        \
  high = high < valid ? high : valid;                                                                \
  high = high < keys ? high : keys;                                                                  \
  const i32 lo = low > 0 ? (low < keys ? (i32)low : keys) : 0;                                       \
  const i32 hi = high > lo ? (i32)high : lo;
#ifdef VALID_LAST
#define KEYS_OF ((i64)key_counts[b] + 1)
#define START (KEYS_OF > queries ? KEYS_OF - queries : 0)
#elif defined(VALID)
#define KEYS_OF key_counts[b]
#define START (KEYS_OF - queries)
#endif
#ifdef VALID
#define VALID_KEYS (i32)(KEYS_OF < 0 ? 0 : KEYS_OF < keys ? KEYS_OF : keys)
#else
#define VALID_KEYS keys
#define START past
#endif

#ifdef QK
#define KEEP_ROW(j, step)                                                                           \
  for (i32 k = (j); k < keys; k += (step)) {                                                        \
    A v = s[k];                                                                                     \
    if (QK >= 1) v = CAPPED(v);                                                                     \
    if (QK == 2) v = k >= lo && k < hi ? MASKED(v, k) : (A)-INFINITY;                               \
    ST_T(qk, ((i64)(b * heads + h) * queries + query) * keys + k, v);                               \
  }
#define KEEP_RESULT(j, step) \
  for (i32 k = (j); k < keys; k += (step)) ST_T(qk, ((i64)(b * heads + h) * queries + query) * keys + k, s[k]);
#endif

#define PARAMS_ \
  const i64 mask_b, const i64 mask_h, const i64 mask_q, const i64 tasks, const i64 per_item, const i32 heads, \
    const i32 queries, const i32 rows, const i32 first, const i32 keys, const i32 ld, const i32 past, const i32 left, \
    const i32 right, const i32 mask_keys, const A cap

KFN(GROUP_SIZE, 1, 1) masked_softmax(TENSOR(A, scores),
#ifdef MASK
                                INPUT(M, mask),
#endif
#ifdef VALID
                                INPUT(N, key_counts),
#endif
#ifdef QK
                                TENSOR(T, qk),
#endif
                                PARAMS_) {
  OPEN(A, scores);
  OPEN_MASK
#ifdef VALID
  OPEN_IN(N, key_counts);
#endif
#ifdef QK
  OPEN(T, qk);
#endif
#ifdef GP_CPU_CLASS
  const i64 task_end = (GROUP(0) + (i64)1) * per_item < tasks ? (GROUP(0) + (i64)1) * per_item : tasks;
  for (i64 row = GROUP(0) * per_item; row < task_end; row++) {
    FIND_ROW(row)
#ifdef QK
    if (QK < 3) { KEEP_ROW(0, 1) }
#endif
    A8 most8 = (A8)(-INFINITY);
    A most = -INFINITY;
    i32 j = lo;
    for (; j + 8 <= hi; j += 8) {
      A8 v = LD8_A(s, j);
      v = CAPPED(v);
      v = MASKED8(v, j);
      ST8_A(s, j, v);
      most8 = v > most8 ? v : most8;
    }
    for (; j < hi; j++) {
      A v = s[j];
      v = CAPPED(v);
      v = MASKED(v, j);
      s[j] = v;
      most = v > most ? v : most;
    }
    for (i32 k = 0; k < 8; k++) {
      const A v = ((const A *)&most8)[k];
      most = v > most ? v : most;
    }
    A8 sum8 = (A8)(0);
    A sum = 0;
    /* NaN is never the largest: a row of nothing else is no empty one. */
    if (most > (A)-INFINITY || hi > lo) {
      const A away = most > (A)-INFINITY ? most : (A)0;
      for (j = lo; j + 8 <= hi; j += 8) {
        const A8 e = exp(LD8_A(s, j) - away);
        ST8_A(s, j, e);
        sum8 += e;
      }
      for (; j < hi; j++) {
        const A e = exp(s[j] - away);
        s[j] = e;
        sum += e;
      }
    }
    for (i32 k = 0; k < 8; k++) sum += ((const A *)&sum8)[k];
    const A factor = sum == (A)0 ? (A)0 : (A)1 / sum;
    for (j = 0; j < lo; j++) s[j] = 0;
    for (; j + 8 <= hi; j += 8) ST8_A(s, j, LD8_A(s, j) * factor);
    for (; j < hi; j++) s[j] *= factor;
    for (; j < keys; j++) s[j] = 0;
#ifdef QK
    if (QK == 3) { KEEP_RESULT(0, 1) }
#endif
  }
#else
  SHARED A shared_[GROUP_SIZE];
  const i32 item = ITEM(0);
  const i64 row = GROUP(0);
  FIND_ROW(row)
#ifdef QK
  if (QK < 3) { KEEP_ROW(item, GROUP_SIZE) }
#endif
  A most = -INFINITY;
  for (i32 j = item; j < keys; j += GROUP_SIZE) {
    A v = (A)-INFINITY;
    if (j >= lo && j < hi) {
      v = CAPPED(s[j]);
      v = MASKED(v, j);
    }
    s[j] = v;
    most = v > most ? v : most;
  }
  shared_[item] = most;
  BARRIER;
  for (i32 half_ = GROUP_SIZE / 2; half_ > 0; half_ /= 2) {
    if (item < half_ && shared_[item + half_] > shared_[item]) shared_[item] = shared_[item + half_];
    BARRIER;
  }
  most = shared_[0];
  BARRIER;
  const A away = most > (A)-INFINITY ? most : (A)0;
  A sum = 0;
  for (i32 j = item; j < keys; j += GROUP_SIZE) {
    const A e = j >= lo && j < hi ? exp(s[j] - away) : (A)0;
    s[j] = e;
    sum += e;
  }
  shared_[item] = sum;
  BARRIER;
  for (i32 half_ = GROUP_SIZE / 2; half_ > 0; half_ /= 2) {
    if (item < half_) shared_[item] += shared_[item + half_];
    BARRIER;
  }
  sum = shared_[0];
  const A factor = sum == (A)0 ? (A)0 : (A)1 / sum;
  for (i32 j = item; j < keys; j += GROUP_SIZE) s[j] *= factor;
#ifdef QK
  if (QK == 3) { KEEP_RESULT(item, GROUP_SIZE) }
#endif
#endif
}
