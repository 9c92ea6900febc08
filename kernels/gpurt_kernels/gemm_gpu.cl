/* y = alpha * A * B + beta * C for GPUs: a group computes a tile of TILE_M x TILE_N, each item ROWS x COLUMNS of it.

   DEPTH steps of the sum at a time are brought into local memory, in the order in which the operand lies in memory:
   A_K_FAST says that A is contiguous along the sum, B_N_FAST that B is along its columns. Elements outside the matrices
   are read as zero. With B_TABLE the columns are output pixels of a convolution and B's element is at table[k] + the
   pixel's position in padded planes (see conv_pad.cl), so nothing has to be checked; there the items of a group are a multiple of
   TILE_N, so that an item stays in its column. */
#define ITEMS_N (TILE_N / COLUMNS)
#define ITEMS_M (TILE_M / ROWS)
#define ITEMS (ITEMS_M * ITEMS_N)

/* A is a matrix, or what the elementwise nodes before it make of others (see gpurt.device.prologue), in one batch. */
#ifdef PROLOGUE
#define A_PARAMS PROLOGUE_PARAMS
#define OPEN_A PROLOGUE_OPEN
#else
#define A_PARAMS INPUT(TA, a), const i64 rsa, const i64 csa, BATCH_STRIDES(a),
#define OPEN_A \
  OPEN_IN(TA, a); \
  a += BATCH_AT(a, z);
#endif

KFN(ITEMS, 1, 1) gemm_gpu(
    A_PARAMS
    INPUT(TB, b), const i64 rsb, const i64 csb, BATCH_STRIDES(b),
    TENSOR(T, y), const i64 rsy, BATCH_STRIDES(y),
#if HAS_C
    INPUT(T, c), const i64 rsc, const i64 csc, BATCH_STRIDES(c), const T_ACC beta,
#endif
#if B_TABLE
    INPUT(i32, table), const i32 plane_w, const i32 plane_h, const i32 out_w, const i32 out_h,
#endif
    EPILOGUE_PARAMS BATCH_SIZES, const i32 M, const i32 N, const i32 K, const T_ACC alpha) {
  SHARED T_ACC a_tile[DEPTH][TILE_M + 1];
  SHARED T_ACC b_tile[DEPTH][TILE_N + 1];
  const i32 z = GROUP(2) + z_first, t = ITEM(0);
  OPEN_A
  OPEN_IN(TB, b);
  OPEN(T, y);
  EPILOGUE_OPEN
#ifdef EPILOGUE
  const GLOBAL T *const y_first = y;
#endif
  b += BATCH_AT(b, z);
  y += BATCH_AT(y, z);
#if B_TABLE
  OPEN_IN(i32, table);
#endif
  const i32 m0 = GROUP(0) * TILE_M, n0 = GROUP(1) * TILE_N;
  /* The item's rows are tm + ITEMS_M * i, its columns tn + ITEMS_N * j. */
  const i32 tm = t / ITEMS_N, tn = t % ITEMS_N;

#if B_TABLE
  const i32 column = n0 + t % TILE_N < N ? n0 + t % TILE_N : N - 1;
  const i32 out_row = column / out_w;
  b += ((i64)(out_row / out_h) * plane_h + out_row % out_h) * plane_w + column % out_w;
#endif

  T_ACC acc[ROWS][COLUMNS];
#pragma unroll
  for (i32 i = 0; i < ROWS; i++)
#pragma unroll
    for (i32 j = 0; j < COLUMNS; j++) acc[i][j] = 0;

  for (i32 k0 = 0; k0 < K; k0 += DEPTH) {
    for (i32 e = t; e < DEPTH * TILE_M; e += ITEMS) {
#if A_K_FAST
      const i32 k = e % DEPTH, m = e / DEPTH;
#else
      const i32 m = e % TILE_M, k = e / TILE_M;
#endif
#ifdef PROLOGUE
      a_tile[k][m] = 0;
      if (m0 + m < M && k0 + k < K) {
        PROLOGUE_SLICE((i64)(m0 + m))
        a_tile[k][m] = prologue1(k0 + k, 0 PROLOGUE_PASS);
      }
#else
      a_tile[k][m] = m0 + m < M && k0 + k < K ? LD_TA(a, (i64)(m0 + m) * rsa + (i64)(k0 + k) * csa) : (T_ACC)0;
#endif
    }
    for (i32 e = t; e < DEPTH * TILE_N; e += ITEMS) {
#if B_TABLE
      const i32 n = e % TILE_N, k = e / TILE_N;
      b_tile[k][n] = k0 + k < K ? LD_TB(b, table[k0 + k]) : (T_ACC)0;
#else
#if B_N_FAST
      const i32 n = e % TILE_N, k = e / TILE_N;
#else
      const i32 k = e % DEPTH, n = e / DEPTH;
#endif
      b_tile[k][n] = n0 + n < N && k0 + k < K ? LD_TB(b, (i64)(k0 + k) * rsb + (i64)(n0 + n) * csb) : (T_ACC)0;
#endif
    }
    BARRIER;
    for (i32 k = 0; k < DEPTH; k++) {
      T_ACC u[ROWS], v[COLUMNS];
#pragma unroll
      for (i32 i = 0; i < ROWS; i++) u[i] = a_tile[k][tm + ITEMS_M * i];
#pragma unroll
      for (i32 j = 0; j < COLUMNS; j++) v[j] = b_tile[k][tn + ITEMS_N * j];
#pragma unroll
      for (i32 i = 0; i < ROWS; i++)
#pragma unroll
        for (i32 j = 0; j < COLUMNS; j++) acc[i][j] += u[i] * v[j];
    }
    BARRIER;
  }

#if HAS_C
  OPEN_IN(T, c);
  c += BATCH_AT(c, z);
#endif
#pragma unroll
  for (i32 i = 0; i < ROWS; i++) {
    const i32 m = m0 + tm + ITEMS_M * i;
#pragma unroll
    for (i32 j = 0; j < COLUMNS; j++) {
      const i32 n = n0 + tn + ITEMS_N * j;
      if (m >= M || n >= N) continue;
      T_ACC v = acc[i][j] * alpha;
#if HAS_C
      v += beta * LD_T(c, (i64)m * rsc + (i64)n * csc);
#endif
      ST_T(y, (i64)m * rsy + n, FINISH1(v, y + (i64)m * rsy + n));
    }
  }
}
