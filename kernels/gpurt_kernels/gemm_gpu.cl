/* y = alpha * A * B + beta * C for GPUs: a group of 256 items computes a tile of 64 x 64, each item 4 x 4 of it.

   Sixteen steps of the sum at a time are brought into local memory, in the order in which the operand lies in memory:
   A_K_FAST says that A is contiguous along the sum, B_N_FAST that B is along its columns. Elements outside the matrices
   are read as zero. With B_TABLE the columns are output pixels of a convolution and B's element is at table[k] + the
   pixel's position in padded planes (see conv_pad.cl), so nothing has to be checked. */
#define TILE 64
#define DEPTH 16

KFN(256, 1, 1) gemm_gpu(
    INPUT(TA, a), const i64 rsa, const i64 csa, BATCH_STRIDES(a),
    INPUT(TB, b), const i64 rsb, const i64 csb, BATCH_STRIDES(b),
    TENSOR(T, y), const i64 rsy, BATCH_STRIDES(y),
#if HAS_C
    INPUT(T, c), const i64 rsc, const i64 csc, BATCH_STRIDES(c), const T_ACC beta,
#endif
#if B_TABLE
    INPUT(i32, table), const i32 plane_w, const i32 plane_h, const i32 out_w, const i32 out_h,
#endif
    EPILOGUE_PARAMS BATCH_SIZES, const i32 M, const i32 N, const i32 K, const T_ACC alpha) {
  SHARED T_ACC a_tile[DEPTH][TILE + 1];
  SHARED T_ACC b_tile[DEPTH][TILE + 1];
  const i32 z = GROUP(2) + z_first, t = ITEM(0);
  OPEN_IN(TA, a);
  OPEN_IN(TB, b);
  OPEN(T, y);
  EPILOGUE_OPEN
#ifdef EPILOGUE
  const GLOBAL T *const y_first = y;
#endif
  a += BATCH_AT(a, z);
  b += BATCH_AT(b, z);
  y += BATCH_AT(y, z);
#if B_TABLE
  OPEN_IN(i32, table);
#endif
  const i32 m0 = GROUP(0) * TILE, n0 = GROUP(1) * TILE;
  const i32 tm = t / 16, tn = t % 16; /* the item's rows are tm + 16 i, its columns tn + 16 j */

#if B_TABLE
  const i32 column = n0 + t % TILE < N ? n0 + t % TILE : N - 1;
  const i32 out_row = column / out_w;
  b += ((i64)(out_row / out_h) * plane_h + out_row % out_h) * plane_w + column % out_w;
#endif

  T_ACC acc[4][4];
#pragma unroll
  for (i32 i = 0; i < 4; i++)
#pragma unroll
    for (i32 j = 0; j < 4; j++) acc[i][j] = 0;

  for (i32 k0 = 0; k0 < K; k0 += DEPTH) {
    for (i32 i = 0; i < 4; i++) {
#if A_K_FAST
      const i32 k = t % DEPTH, m = t / DEPTH + 16 * i;
#else
      const i32 m = t % TILE, k = t / TILE + 4 * i;
#endif
      a_tile[k][m] = m0 + m < M && k0 + k < K ? LD_TA(a, (i64)(m0 + m) * rsa + (i64)(k0 + k) * csa) : (T_ACC)0;
    }
    for (i32 i = 0; i < 4; i++) {
#if B_TABLE
      const i32 n = t % TILE, k = t / TILE + 4 * i;
      b_tile[k][n] = k0 + k < K ? LD_TB(b, table[k0 + k]) : (T_ACC)0;
#else
#if B_N_FAST
      const i32 n = t % TILE, k = t / TILE + 4 * i;
#else
      const i32 k = t % DEPTH, n = t / DEPTH + 16 * i;
#endif
      b_tile[k][n] = n0 + n < N && k0 + k < K ? LD_TB(b, (i64)(k0 + k) * rsb + (i64)(n0 + n) * csb) : (T_ACC)0;
#endif
    }
    BARRIER;
    for (i32 k = 0; k < DEPTH; k++) {
      T_ACC u[4], v[4];
#pragma unroll
      for (i32 i = 0; i < 4; i++) u[i] = a_tile[k][tm + 16 * i];
#pragma unroll
      for (i32 j = 0; j < 4; j++) v[j] = b_tile[k][tn + 16 * j];
#pragma unroll
      for (i32 i = 0; i < 4; i++)
#pragma unroll
        for (i32 j = 0; j < 4; j++) acc[i][j] += u[i] * v[j];
    }
    BARRIER;
  }

#if HAS_C
  OPEN_IN(T, c);
  c += BATCH_AT(c, z);
#endif
#pragma unroll
  for (i32 i = 0; i < 4; i++) {
    const i32 m = m0 + tm + 16 * i;
#pragma unroll
    for (i32 j = 0; j < 4; j++) {
      const i32 n = n0 + tn + 16 * j;
      if (m >= M || n >= N) continue;
      T_ACC v = acc[i][j] * alpha;
#if HAS_C
      v += beta * LD_T(c, (i64)m * rsc + (i64)n * csc);
#endif
      ST_T(y, (i64)m * rsy + n, FINISH1(v, y + (i64)m * rsy + n));
    }
  }
}
