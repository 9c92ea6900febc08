/* Around attention: RotaryEmbedding, LinearAttention, CausalConvWithState. After rows.h. */

#ifdef ROTARY
/* A row is a head of one token: pairs of its first 2 * half elements turn by the token's angles. */
ROW_KERNEL rotary(INPUT(T, x), INPUT(T, cosines), INPUT(T, sines),
#ifdef POSITIONS
                  INPUT(i64, positions),
#endif
                  TENSOR(T, y), const i32 heads, const i32 length, const i32 half_, const i64 batch_step,
                  const i64 table, ROW_PARAMS) {
  OPEN_IN(T, x);
  OPEN_IN(T, cosines);
  OPEN_IN(T, sines);
#ifdef POSITIONS
  OPEN_IN(i64, positions);
#endif
  OPEN(T, y);
  EACH_ROW(row) {
#ifdef HEADS_FIRST
    const i64 token = row % length, image = row / length / heads;
#else
    const i64 token = row / heads % length, image = row / heads / length;
#endif
    i64 at = image * batch_step + token;
#ifdef POSITIONS
    at = positions[at];
    at = at < 0 ? at + table : at;
    at = at < 0 ? 0 : at >= table ? table - 1 : at;
#endif
    const GLOBAL T *p = x + (i64)row * inner;
    GLOBAL T *q = y + (i64)row * inner;
    EACH(i) {
      T_ACC v = LD_T(p, i);
      if (i < 2 * half_) {
#ifdef INTERLEAVED
        const i32 k = (i32)i / 2, second = (i32)i % 2;
        const T_ACC other = LD_T(p, second ? i - 1 : i + 1);
#else
        const i32 second = i >= half_, k = (i32)i - (second ? half_ : 0);
        const T_ACC other = LD_T(p, second ? i - half_ : i + half_);
#endif
        const T_ACC c = LD_T(cosines, at * half_ + k), s = LD_T(sines, at * half_ + k);
        v = second ? s * other + c * v : c * v - s * other;
      }
      ST_T(q, i, v);
    }
  }
}
#endif

#ifdef LINEAR
/* A row is a head of keys and values of one sequence, its elements are blocks of COLS columns of the state, which have
 * nothing to do with each other: an item takes them through all tokens. state: (batch, kv heads, d_k, d_v) of A. */
ROW_KERNEL linear_attention(INPUT(T, query), INPUT(T, key), INPUT(T, value),
#ifdef PAST
                            INPUT(S, past),
#endif
#ifdef DECAY
                            INPUT(T, decay),
#endif
#ifdef BETA
                            INPUT(T, beta),
#endif
                            TENSOR(A, state), TENSOR(T, y), const i32 length, const i32 kv_heads, const i32 group,
                            const i32 d_k, const i32 d_v, const i32 decays, const i32 betas, const A scale,
                            ROW_PARAMS) {
  OPEN_IN(T, query);
  OPEN_IN(T, key);
  OPEN_IN(T, value);
#ifdef PAST
  OPEN_IN(S, past);
#endif
#ifdef DECAY
  OPEN_IN(T, decay);
#endif
#ifdef BETA
  OPEN_IN(T, beta);
#endif
  OPEN(A, state);
  OPEN(T, y);
  EACH_ROW(row) {
    const i64 b = row / kv_heads;
    const i32 h = (i32)(row % kv_heads);
    EACH(i) {
      const i32 first = (i32)i * COLS;
      const i32 count = first + COLS < d_v ? COLS : d_v - first;
      const i64 base = (i64)row * d_k * d_v + first;
      GLOBAL A *own = state + base;
      for (i32 d = 0; d < d_k; d++)
        for (i32 m = 0; m < count; m++)
#ifdef PAST
          own[(i64)d * d_v + m] = LD_S(past, base + (i64)d * d_v + m);
#else
          own[(i64)d * d_v + m] = 0;
#endif
      for (i32 t = 0; t < length; t++) {
        const i64 token = b * length + t;
        const GLOBAL T *k = key + (token * kv_heads + h) * d_k;
        A v[COLS];
        for (i32 m = 0; m < count; m++) v[m] = LD_T(value, (token * kv_heads + h) * d_v + first + m);
#ifdef DECAY
        /* One factor for a head, or one for each of its keys' elements. */
        for (i32 d = 0; d < d_k; d++) {
          const A g = exp((A)LD_T(decay, token * decays + (decays == kv_heads ? h : h * d_k + d)));
          for (i32 m = 0; m < count; m++) own[(i64)d * d_v + m] *= g;
        }
#endif
#ifdef BETA
        A known[COLS];
        for (i32 m = 0; m < count; m++) known[m] = 0;
        for (i32 d = 0; d < d_k; d++) {
          const A kd = LD_T(k, d);
          for (i32 m = 0; m < count; m++) known[m] += own[(i64)d * d_v + m] * kd;
        }
        const A rate = LD_T(beta, token * betas + (betas == 1 ? 0 : h));
        for (i32 m = 0; m < count; m++) v[m] = rate * (v[m] - known[m]);
#endif
        for (i32 d = 0; d < d_k; d++) {
          const A kd = LD_T(k, d);
          for (i32 m = 0; m < count; m++) own[(i64)d * d_v + m] += kd * v[m];
        }
        for (i32 g = 0; g < group; g++) {
          const i64 head = (token * kv_heads + h) * group + g;
          A sum[COLS];
          for (i32 m = 0; m < count; m++) sum[m] = 0;
          for (i32 d = 0; d < d_k; d++) {
            const A qd = LD_T(query, head * d_k + d);
            for (i32 m = 0; m < count; m++) sum[m] += qd * own[(i64)d * d_v + m];
          }
          for (i32 m = 0; m < count; m++) ST_T(y, head * d_v + first + m, scale * sum[m]);
        }
      }
    }
  }
}
#endif

#ifdef CAUSAL_CONV
#ifdef PAST
#define BEFORE(i) (T_ACC)LD_T(past, (i64)row * (taps - 1) + (i))
#else
#define BEFORE(i) (T_ACC)0
#endif
/* Element i of a row with what comes before it in time. */
#define EXTENDED(i) ((i) < taps - 1 ? BEFORE(i) : (T_ACC)LD_T(x, (i64)row * length + (i) - (taps - 1)))

ROW_KERNEL causal_conv(INPUT(T, x), INPUT(T, w),
#ifdef BIAS
                       INPUT(T, bias),
#endif
#ifdef PAST
                       INPUT(T, past),
#endif
                       TENSOR(T, y), const i64 channels, const i64 length, const i64 taps, ROW_PARAMS) {
  OPEN_IN(T, x);
#ifdef CONV
  OPEN_IN(T, w);
#endif
#ifdef BIAS
  OPEN_IN(T, bias);
#endif
#ifdef PAST
  OPEN_IN(T, past);
#endif
  OPEN(T, y);
  EACH_ROW(row) {
    EACH(i) {
#ifdef CONV
      const i64 c = row % channels;
#ifdef BIAS
      T_ACC sum = LD_T(bias, c);
#else
      T_ACC sum = 0;
#endif
      for (i64 t = 0; t < taps; t++) sum += (T_ACC)LD_T(w, c * taps + t) * EXTENDED(i + t);
#ifdef SILU
      sum = sum / ((T_ACC)1 + exp(-sum));
#endif
      ST_T(y, (i64)row * inner + i, sum);
#else /* the state that is left: the last taps - 1 elements */
      ST_T(y, (i64)row * inner + i, EXTENDED(length + i));
#endif
    }
  }
}
#endif
