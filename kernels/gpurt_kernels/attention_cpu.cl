/* Attention for CPUs in one pass: scores, masks, softmax and the weighted sum of a block of queries stay in the cache.
 *
 * attend_block takes BV vectors of 16 queries: they lie side by side, so that the softmax runs over keys without looking
 * across a vector. Queries are packed, [element][query]; keys' elements are broadcast, KT keys at a time; the weights of
 * QT queries are broadcast against NVV vectors of values. attend_row takes one query, whose elements lie side by side.
 * Heads are DK elements in queries and keys and DV in values, both multiples of 16, at any address. What a query sees is
 * said in attention.cl; a query without any key gets zeros. scratch: for each group (DK + keys) * 16 * BV floats, or
 * for each row `keys`, rounded up to 16. */
struct __attribute__((packed)) unaligned {
  float16 v;
};
#define LOAD16(p) (((const GLOBAL struct unaligned *)(p))->v)
#define STORE16(p, x) (((GLOBAL struct unaligned *)(p))->v = (x))
#define BQ (16 * BV)

#ifdef CAP
#define CAPPED(v) (cap * tanh((v) / cap))
#else
#define CAPPED(v) (v)
#endif
#ifdef MASK_BOOL
#define MASKED(v, at) (LD_M(bias, at) ? (v) : -INFINITY)
#elif defined(MASK)
#define MASKED(v, at) ((v) + (float)LD_M(bias, at))
#else
#define MASKED(v, at) (v)
#endif
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

/* The keys [lo, hi) that a query may see. */
#define FIND_KEYS(query, lo, hi)                                                                  \
  const i64 here_ = (i64)(query) + START;                                                         \
  const i64 low_ = left >= 0 ? here_ - left : 0;                                                  \
  i64 high_ = right >= 0 ? here_ + right + 1 : keys;                                              \
  high_ = high_ < mask_keys ? high_ : mask_keys;                                                  \
  high_ = high_ < valid ? high_ : valid;                                                          \
  const i32 lo = low_ > 0 ? (low_ < keys ? (i32)low_ : keys) : 0;                                 \
  const i32 hi = high_ > lo ? (i32)high_ : lo;

/* PoCL computes exp of eight at a time. */
FN float16 exp16(const float16 v) {
  float16 e;
  ((float8 *)&e)[0] = exp(((const float8 *)&v)[0]);
  ((float8 *)&e)[1] = exp(((const float8 *)&v)[1]);
  return e;
}
FN float sum16(const float16 v) {
  const float8 *const halves = (const float8 *)&v;
  const float8 e = halves[0] + halves[1];
  const float4 q = e.lo + e.hi;
  return (q.x + q.z) + (q.y + q.w);
}

#ifdef MASK
#define MASK_PARAM INPUT(M, mask),
#define OPEN_MASK OPEN_IN(M, mask);
#else
#define MASK_PARAM
#define OPEN_MASK
#endif
#ifdef VALID
#define VALID_PARAM INPUT(N, key_counts),
#define OPEN_VALID OPEN_IN(N, key_counts);
#else
#define VALID_PARAM
#define OPEN_VALID
#endif
#define PARAMS_                                                                                                    \
  INPUT(float, q), INPUT(float, k), INPUT(float, v), MASK_PARAM VALID_PARAM TENSOR(float, y), TENSOR(float, scratch), \
    const i64 q_b, const i64 q_h, const i64 q_t, const i64 k_b, const i64 k_h, const i64 k_t, const i64 v_b,       \
    const i64 v_h, const i64 v_t, const i64 y_b, const i64 y_h, const i64 y_t, const i64 mask_b, const i64 mask_h, \
    const i64 mask_q, const i32 group, const i32 queries, const i32 per_item, const i32 keys, const i32 past,     \
    const i32 left, const i32 right, const i32 mask_keys, const float scale, const float cap
#define OPEN_ALL                                              \
  OPEN_IN(float, q);                                          \
  OPEN_IN(float, k);                                          \
  OPEN_IN(float, v);                                          \
  OPEN_MASK                                                   \
  OPEN_VALID                                                  \
  OPEN(float, y);                                             \
  OPEN(float, scratch);                                       \
  const i32 h = GROUP(1), b = GROUP(2);                       \
  q += b * q_b + h * q_h;                                     \
  k += b * k_b + h / group * k_h;                             \
  v += b * v_b + h / group * v_h;                             \
  y += b * y_b + h * y_h;                                     \
  const i64 item = ((i64)b * GROUPS(1) + h) * GROUPS(0) + GROUP(0); \
  const i32 begin = GROUP(0) * per_item;                      \
  const i32 stop = begin + per_item < queries ? begin + per_item : queries; \
  const i32 valid = VALID_KEYS;

#ifdef BLOCK
KFN(1, 1, 1) attend_block(PARAMS_) {
  OPEN_ALL
  GLOBAL float *packed = scratch + item * (DK + (i64)keys) * BQ, *s = packed + DK * BQ;
  for (i32 first = begin; first < stop; first += BQ) {
    const i32 count = stop - first < BQ ? stop - first : BQ;
    i32 los[BQ], his[BQ];
    /* Some query sees a key of [from, to), all of them see those of [all_from, all_to). */
    i32 from = keys, to = 0, all_from = 0, all_to = keys;
    for (i32 i = 0; i < BQ; i++) {
      const i32 own = first + (i < count ? i : count - 1); /* lanes past the end repeat the last query */
      const GLOBAL float *row = q + own * q_t;
      for (i32 d = 0; d < DK; d++) packed[d * BQ + i] = row[d] * scale;
      FIND_KEYS(own, lo, hi)
      los[i] = lo;
      his[i] = hi;
      from = lo < from ? lo : from;
      to = hi > to ? hi : to;
      all_from = lo > all_from ? lo : all_from;
      all_to = hi < all_to ? hi : all_to;
    }
    float16 most[BV];
    for (i32 j = 0; j < BV; j++) most[j] = (float16)(-INFINITY);
    for (i32 key = from; key < to; key += KT) {
      float16 acc[KT][BV];
      i64 row[KT];
#pragma unroll
      for (i32 t = 0; t < KT; t++) {
        row[t] = (i64)(key + t < to ? t : to - 1 - key) * k_t;
#pragma unroll
        for (i32 j = 0; j < BV; j++) acc[t][j] = (float16)(0.0f);
      }
      const GLOBAL float *restrict p = k + (i64)key * k_t;
      const GLOBAL float *restrict columns = packed;
      for (i32 d = 0; d < DK; d++) {
        float16 x[BV];
#pragma unroll
        for (i32 j = 0; j < BV; j++) x[j] = LOAD16(columns + 16 * j);
#pragma unroll
        for (i32 t = 0; t < KT; t++) {
          const float one = p[row[t]];
#pragma unroll
          for (i32 j = 0; j < BV; j++) acc[t][j] += one * x[j];
        }
        p++;
        columns += BQ;
      }
#pragma unroll
      for (i32 t = 0; t < KT; t++) {
        const i32 at = key + t;
        if (at >= to) continue;
#pragma unroll
        for (i32 j = 0; j < BV; j++) {
          float16 e = acc[t][j];
#ifdef CAP
          e = cap * tanh(e / cap);
#endif
#ifdef MASK
          const GLOBAL M *bias = mask + b * mask_b + h * mask_h + first * mask_q;
#ifdef MASK_LINE /* the same for all queries */
#ifdef MASK_BOOL
          if (!LD_M(bias, at)) e = (float16)(-INFINITY);
#else
          e += (float)LD_M(bias, at);
#endif
#else
          for (i32 l = 0; l < 16; l++) {
            const i32 own = 16 * j + l < count ? 16 * j + l : count - 1;
            ((float *)&e)[l] = MASKED(((float *)&e)[l], own * mask_q + at);
          }
#endif
#endif
          if (at < all_from || at >= all_to)
            for (i32 l = 0; l < 16; l++)
              if (at < los[16 * j + l] || at >= his[16 * j + l]) ((float *)&e)[l] = -INFINITY;
          STORE16(s + (i64)at * BQ + 16 * j, e);
          most[j] = e > most[j] ? e : most[j];
        }
      }
    }
    float16 sum[BV];
    for (i32 j = 0; j < BV; j++) {
      sum[j] = (float16)(0.0f);
      most[j] = most[j] > (float16)(-INFINITY) ? most[j] : (float16)(0.0f);
    }
    for (i32 key = from; key < to; key++)
#pragma unroll
      for (i32 j = 0; j < BV; j++) {
        GLOBAL float *at = s + (i64)key * BQ + 16 * j;
        const float16 e = exp16(LOAD16(at) - most[j]);
        STORE16(at, e);
        sum[j] += e;
      }
    for (i32 i = 0; i < count; i += QT) {
      for (i32 c = 0; c < DV; c += 16 * NVV) {
        float16 acc[QT][NVV];
#pragma unroll
        for (i32 t = 0; t < QT; t++)
#pragma unroll
          for (i32 j = 0; j < NVV; j++) acc[t][j] = (float16)(0.0f);
        const GLOBAL float *restrict weights = s + (i64)from * BQ + i;
        const GLOBAL float *restrict p = v + (i64)from * v_t + c;
        for (i32 key = from; key < to; key++) {
          float16 x[NVV];
#pragma unroll
          for (i32 j = 0; j < NVV; j++) x[j] = LOAD16(p + 16 * j);
#pragma unroll
          for (i32 t = 0; t < QT; t++) {
            const float one = weights[t];
#pragma unroll
            for (i32 j = 0; j < NVV; j++) acc[t][j] += one * x[j];
          }
          weights += BQ;
          p += v_t;
        }
#pragma unroll
        for (i32 t = 0; t < QT; t++) {
          if (i + t >= count) continue;
          const float total = ((const float *)sum)[i + t];
          const float factor = total == 0.0f ? 0.0f : 1.0f / total;
#pragma unroll
          for (i32 j = 0; j < NVV; j++) STORE16(y + (i64)(first + i + t) * y_t + c + 16 * j, acc[t][j] * factor);
        }
      }
    }
  }
}
#else
KFN(1, 1, 1) attend_row(PARAMS_) {
  OPEN_ALL
  GLOBAL float *s = scratch + item * ((keys + 15) / 16 * 16);
  for (i32 query = begin; query < stop; query++) {
    FIND_KEYS(query, lo, hi)
#ifdef MASK
    const GLOBAL M *bias = mask + b * mask_b + h * mask_h + query * mask_q;
#endif
    float16 x[DK / 16];
#pragma unroll
    for (i32 j = 0; j < DK / 16; j++) x[j] = LOAD16(q + query * q_t + 16 * j) * scale;
    float most = -INFINITY;
    for (i32 key = lo; key < hi; key++) {
      const GLOBAL float *restrict p = k + (i64)key * k_t;
      float16 product = x[0] * LOAD16(p);
#pragma unroll
      for (i32 j = 1; j < DK / 16; j++) product += x[j] * LOAD16(p + 16 * j);
      float e = sum16(product);
      e = CAPPED(e);
      e = MASKED(e, key);
      s[key] = e;
      most = e > most ? e : most;
    }
    most = most > -INFINITY ? most : 0.0f;
    float sum = 0.0f;
    i32 key = lo;
    float16 sums = (float16)(0.0f);
    for (; key + 16 <= hi; key += 16) {
      const float16 e = exp16(LOAD16(s + key) - most);
      STORE16(s + key, e);
      sums += e;
    }
    for (; key < hi; key++) {
      s[key] = exp(s[key] - most);
      sum += s[key];
    }
    sum += sum16(sums);
    const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
    float16 acc[DV / 16];
#pragma unroll
    for (i32 j = 0; j < DV / 16; j++) acc[j] = (float16)(0.0f);
    for (key = lo; key < hi; key++) {
      const float one = s[key];
      const GLOBAL float *restrict p = v + (i64)key * v_t;
#pragma unroll
      for (i32 j = 0; j < DV / 16; j++) acc[j] += one * LOAD16(p + 16 * j);
    }
#pragma unroll
    for (i32 j = 0; j < DV / 16; j++) STORE16(y + query * y_t + 16 * j, acc[j] * factor);
  }
}
#endif
