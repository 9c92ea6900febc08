/* What the CPU class does to operands before a product: B into panels, halves into floats. */

/* B (rows by rsb, columns by csb) into panels [panel][k][16] of floats, zeros behind the last column. */
KFN(1, 1, 1) gemm_pack(INPUT(T, b), const i64 rsb, const i64 csb, BATCH_STRIDES(b), TENSOR(float, y), BATCH_SIZES,
                       const i32 N, const i32 K, const i32 depth) {
  const i32 z = GROUP(2) + z_first, panel = GROUP(0), n0 = 16 * panel;
  OPEN_IN(T, b);
  OPEN(float, y);
  b += BATCH_AT(b, z) + n0 * csb;
  y += ((i64)z * GROUPS(0) + panel) * K * 16;
  const i32 first = GROUP(1) * depth;
  const i32 end = first + depth < K ? first + depth : K;
  if (n0 + 16 <= N) {
    for (i32 k = first; k < end; k++)
      for (i32 j = 0; j < 16; j++) y[(i64)k * 16 + j] = LD_T(b, k * rsb + j * csb);
  } else {
    for (i32 k = first; k < end; k++)
      for (i32 j = 0; j < 16; j++) y[(i64)k * 16 + j] = n0 + j < N ? LD_T(b, k * rsb + j * csb) : 0.0f;
  }
}

KFN(1, 1, 1) to_float(INPUT(T, x), TENSOR(float, y), const i64 n) {
  OPEN_IN(T, x);
  OPEN(float, y);
  const i64 begin = (i64)GROUP(0) * 4096;
  const i64 end = begin + 4096 < n ? begin + 4096 : n;
  for (i64 i = begin; i < end; i++) y[i] = LD_T(x, i);
}

/* y[row] = alpha * (row of A) . x + beta * C: both are contiguous along the sum, so it runs in vectors of 16. */
struct __attribute__((packed)) unaligned_ {
  float16 v;
};
#define LOAD16_(p) (((const GLOBAL struct unaligned_ *)(p))->v)
KFN(1, 1, 1) gemv_rows(
    INPUT(float, a), const i64 rsa, BATCH_STRIDES(a),
    INPUT(float, x), BATCH_STRIDES(x),
    TENSOR(T, y), const i64 sy, BATCH_STRIDES(y),
#if HAS_C
    INPUT(T, c), const i64 sc, BATCH_STRIDES(c), const float beta,
#endif
    EPILOGUE_PARAMS BATCH_SIZES, const i32 rows, const i32 M, const i32 K, const float alpha) {
  const i32 z = GROUP(2) + z_first;
  OPEN_IN(float, a);
  OPEN_IN(float, x);
  OPEN(T, y);
  EPILOGUE_OPEN
#ifdef EPILOGUE
  const GLOBAL T *const y_first = y;
#endif
  a += BATCH_AT(a, z);
  x += BATCH_AT(x, z);
  y += BATCH_AT(y, z);
#if HAS_C
  OPEN_IN(T, c);
  c += BATCH_AT(c, z);
#endif
  const i32 first = GROUP(0) * rows;
  const i32 end = first + rows < M ? first + rows : M;
  for (i32 m = first; m < end; m++) {
    const GLOBAL float *restrict p = a + (i64)m * rsa;
    float16 s0 = (float16)(0.0f), s1 = s0, s2 = s0, s3 = s0;
    i32 k = 0;
    for (; k + 64 <= K; k += 64) {
      s0 += LOAD16_(p + k) * LOAD16_(x + k);
      s1 += LOAD16_(p + k + 16) * LOAD16_(x + k + 16);
      s2 += LOAD16_(p + k + 32) * LOAD16_(x + k + 32);
      s3 += LOAD16_(p + k + 48) * LOAD16_(x + k + 48);
    }
    for (; k + 16 <= K; k += 16) s0 += LOAD16_(p + k) * LOAD16_(x + k);
    s0 = (s0 + s1) + (s2 + s3);
    const float8 *const halves = (const float8 *)&s0; /* .hi would do, but Oclgrind loses its lane 3 */
    const float8 e = halves[0] + halves[1];
    const float4 q = e.lo + e.hi;
    float sum = (q.x + q.z) + (q.y + q.w);
    for (; k < K; k++) sum += p[k] * x[k];
    sum *= alpha;
#if HAS_C
    sum += beta * LD_T(c, m * sc);
#endif
    ST_T(y, m * sy, FINISH1(sum, y + m * sy));
  }
}
