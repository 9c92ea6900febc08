/* y = alpha * A * B + beta * C in any type (double, integers) for the CPU class: 16 columns of one row an item. */
KFN(1, 1, 1) gemm_plain(
    INPUT(T, a), const i64 rsa, const i64 csa, BATCH_STRIDES(a),
    INPUT(T, b), const i64 rsb, const i64 csb, BATCH_STRIDES(b),
    TENSOR(T, y), const i64 rsy, BATCH_STRIDES(y),
#if HAS_C
    INPUT(T, c), const i64 rsc, const i64 csc, BATCH_STRIDES(c), const T_ACC beta,
#endif
    BATCH_SIZES, const i32 M, const i32 N, const i32 K, const T_ACC alpha) {
  const i32 z = GROUP(2) + z_first;
  OPEN_IN(T, a);
  OPEN_IN(T, b);
  OPEN(T, y);
  const i32 m = GROUP(0), n0 = GROUP(1) * 16;
  const i32 count = N - n0 < 16 ? N - n0 : 16;
  a += BATCH_AT(a, z) + m * rsa;
  b += BATCH_AT(b, z) + n0 * csb;
  y += BATCH_AT(y, z) + m * rsy + n0;
  T_ACC acc[16];
  for (i32 j = 0; j < 16; j++) acc[j] = 0;
  if (count == 16) {
    for (i32 k = 0; k < K; k++) {
      const T_ACC x = LD_T(a, k * csa);
      for (i32 j = 0; j < 16; j++) acc[j] += x * LD_T(b, k * rsb + j * csb);
    }
  } else {
    for (i32 k = 0; k < K; k++) {
      const T_ACC x = LD_T(a, k * csa);
      for (i32 j = 0; j < count; j++) acc[j] += x * LD_T(b, k * rsb + j * csb);
    }
  }
#if HAS_C
  OPEN_IN(T, c);
  c += BATCH_AT(c, z) + m * rsc + n0 * csc;
#endif
  for (i32 j = 0; j < count; j++) {
    T_ACC v = acc[j] * alpha;
#if HAS_C
    v += beta * LD_T(c, j * csc);
#endif
    ST_T(y, j, v);
  }
}
