/* y = alpha * A * B + beta * C for GPUs where A has at most MB rows: B is read once, and that bounds the time.

   A group of GROUP_SIZE items takes GROUP_SIZE / SLICES columns; the items of a column share the sum and add up their parts
   through local memory. With B_K_FAST neighbouring items lie along the sum, else along the columns, as B does. With
   B_TABLE the columns are a convolution's pixels, as in gemm_gpu.cl; grouped and depthwise ones come here. */
#define COLUMNS (GROUP_SIZE / SLICES)

KFN(GROUP_SIZE, 1, 1) gemm_skinny(
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
#if SLICES > 1
  SHARED T_ACC part[GROUP_SIZE];
#endif
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
#if HAS_C
  OPEN_IN(T, c);
  c += BATCH_AT(c, z);
#endif
#if B_K_FAST
  const i32 column = t / SLICES, slice = t % SLICES;
#else
  const i32 column = t % COLUMNS, slice = t / COLUMNS;
#endif
  const i32 n = GROUP(0) * COLUMNS + column;
  const i32 own = n < N ? n : N - 1; /* items past the end repeat the last column, so that all reach the barriers */
#if B_TABLE
  OPEN_IN(i32, table);
  const i32 out_row = own / out_w;
  b += ((i64)(out_row / out_h) * plane_h + out_row % out_h) * plane_w + own % out_w;
#else
  b += own * csb;
#endif

  T_ACC acc[MB];
#pragma unroll
  for (i32 i = 0; i < MB; i++) acc[i] = 0;
  for (i32 k = slice; k < K; k += SLICES) {
#if B_TABLE
    const T_ACC v = LD_TB(b, table[k]);
#else
    const T_ACC v = LD_TB(b, k * rsb);
#endif
#pragma unroll
    for (i32 i = 0; i < MB; i++) acc[i] += v * LD_TA(a, (i < M ? i : M - 1) * rsa + k * csa);
  }

#pragma unroll
  for (i32 i = 0; i < MB; i++) {
    T_ACC sum = acc[i];
#if SLICES > 1
    part[t] = sum;
    BARRIER;
    if (slice == 0) {
#if B_K_FAST
      for (i32 s = 1; s < SLICES; s++) sum += part[t + s];
#else
      for (i32 s = 1; s < SLICES; s++) sum += part[t + s * COLUMNS];
#endif
    }
    BARRIER;
#endif
    if (slice == 0 && n < N && i < M) {
      sum *= alpha;
#if HAS_C
      sum += beta * LD_T(c, i * rsc + n * csc);
#endif
      ST_T(y, i * rsy + n, FINISH1(sum, y + i * rsy + n));
    }
  }
}
