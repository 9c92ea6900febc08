/* y = alpha * A * B + beta * C for CPUs: one item computes ROWS rows of 16 * NV columns in registers, tile after tile.

   MR rows by NV vectors of 16 floats are accumulated at a time. A's elements are broadcast from where they are, so A is
   never packed. B's vector j at depth k is where B_MODE says:
     0  panels of 16 columns, [panel][k][16], the last one filled up with zeros;
     1  rows of the matrix itself: its columns are contiguous, and there are at least 16 * NV of them;
     2  a table of offsets by k: a convolution, whose columns are positions in padded planes (see conv_pad.cl). Planes
        have rows wider than the output's, so some columns are computed for nothing and not stored.
   With EXACT the elements are small integers and so is the result: EXACT products at most add up in floats without
   rounding, then the sums move on into integers. Floats are the faster way, as CPUs multiply them in one instruction.
   An unaligned load through a packed struct is one instruction, where vload16 is a call on PoCL. AHEAD: B is read once, so
   memory bounds the time, and its floats so much further on are asked for early. */
struct __attribute__((packed)) unaligned {
  float16 v;
};
#define LOAD16(p) (((const GLOBAL struct unaligned *)(p))->v)
#if EXACT
struct __attribute__((packed)) unaligned_sums {
  int16 v;
};
#define STORE16(p, x) (((GLOBAL struct unaligned_sums *)(p))->v = (x))
#define VALUE i32
#define VECTOR_STORE 1
#else
#define STORE16(p, x) (((GLOBAL struct unaligned *)(p))->v = (x))
#define VALUE float
#define VECTOR_STORE T_IS_FLOAT
#endif
#define NR (16 * NV)

#if A_CONTIGUOUS
#define A_STEP 1
#else
#define A_STEP csa
#endif

KFN(1, 1, 1) gemm_cpu(
    INPUT(float, a), const i64 rsa, const i64 csa, BATCH_STRIDES(a),
    INPUT(float, b), const i64 rsb, BATCH_STRIDES(b),
    TENSOR(T, y), const i64 rsy, BATCH_STRIDES(y),
#if HAS_C
    INPUT(T, c), const i64 rsc, const i64 csc, BATCH_STRIDES(c), const float beta,
#endif
#if B_MODE == 2
    INPUT(i32, table), const i32 plane_w, const i32 plane_h, const i32 out_w, const i32 out_h,
#endif
    EPILOGUE_PARAMS BATCH_SIZES, const i32 rows, const i32 M, const i32 N, const i32 K, const float alpha) {
  const i32 z = GROUP(2) + z_first;
  OPEN_IN(float, a);
  OPEN_IN(float, b);
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

  /* The tile's columns are n0 .. n0 + NR, of which `from` .. `to` are stored. */
  i32 n0 = GROUP(0) * NR;
  i32 from = 0;
  const i32 to = N - n0 < NR ? N - n0 : NR;
  const GLOBAL float *restrict columns[NV];
#if B_MODE == 0
  const i32 last_panel = (N - 1) / 16;
  for (i32 j = 0; j < NV; j++) {
    const i32 panel = n0 / 16 + j < last_panel ? n0 / 16 + j : last_panel;
    columns[j] = b + (i64)panel * K * 16;
  }
#define B_AT(k) ((i64)(k) * 16)
#elif B_MODE == 1
  if (to < NR) { /* the last tile overlaps the one before it rather than read past the row */
    from = NR - to;
    n0 -= from;
  }
  for (i32 j = 0; j < NV; j++) columns[j] = b + n0 + 16 * j;
#define B_AT(k) ((i64)(k) * rsb)
#else
  OPEN_IN(i32, table);
  for (i32 j = 0; j < NV; j++) columns[j] = b + n0 + 16 * j;
#define B_AT(k) (table[k])
  /* The plane's row and column of each vector's first element, and whether all of it belongs to one row of pixels. */
  i32 at_row[NV], at_column[NV], whole[NV];
  for (i32 j = 0, row = n0 / plane_w, column = n0 % plane_w; j < NV; j++, column += 16) {
    for (; column >= plane_w; column -= plane_w) row++;
    at_row[j] = row;
    at_column[j] = column;
    whole[j] = column + 16 <= out_w && row % plane_h < out_h && 16 * j + 16 <= to;
  }
#endif
#if B_MODE == 1
  const i32 end = NR;
#else
  const i32 end = to;
#endif

  const i32 m_first = GROUP(1) * rows;
  const i32 m_end = m_first + rows < M ? m_first + rows : M;
  for (i32 m = m_first; m < m_end; m += MR) {
    /* Rows past the end repeat the last one and are not stored. */
    const i32 last = m_end - 1 - m;
    float16 acc[MR][NV];
    i64 row[MR];
#pragma unroll
    for (i32 i = 0; i < MR; i++) {
      row[i] = (i64)(i < last ? i : last) * rsa;
#pragma unroll
      for (i32 j = 0; j < NV; j++) acc[i][j] = (float16)(0.0f);
    }
    const GLOBAL float *restrict p = a + (i64)m * rsa;
#if EXACT
    int16 sum[MR][NV];
#pragma unroll
    for (i32 i = 0; i < MR; i++)
#pragma unroll
      for (i32 j = 0; j < NV; j++) sum[i][j] = (int16)(0);
    for (i32 k_first = 0; k_first < K; k_first += EXACT) {
    const i32 k_end = k_first + EXACT < K ? k_first + EXACT : K;
#else
    const i32 k_first = 0, k_end = K;
#endif
    for (i32 k = k_first; k < k_end; k++) {
      const i64 at = B_AT(k);
      float16 v[NV];
#pragma unroll
      for (i32 j = 0; j < NV; j++) {
#if defined(AHEAD) && defined(__clang__)
        __builtin_prefetch((const void *)(size_t)(columns[j] + at + AHEAD));
#endif
        v[j] = LOAD16(columns[j] + at);
      }
#pragma unroll
      for (i32 i = 0; i < MR; i++) {
        const float x = p[row[i]];
#pragma unroll
        for (i32 j = 0; j < NV; j++) acc[i][j] += x * v[j];
      }
      p += A_STEP;
    }
#if EXACT
#pragma unroll
    for (i32 i = 0; i < MR; i++)
#pragma unroll
      for (i32 j = 0; j < NV; j++) {
        sum[i][j] += convert_int16(acc[i][j]);
        acc[i][j] = (float16)(0.0f);
      }
    }
#endif

#pragma unroll
    for (i32 i = 0; i < MR; i++) {
      if (i > last) continue;
      GLOBAL T *out = y + (i64)(m + i) * rsy;
#pragma unroll
      for (i32 j = 0; j < NV; j++) {
#if EXACT
        int16 v = sum[i][j];
#else
        float16 v = acc[i][j] * alpha;
#endif
#if HAS_C && B_MODE == 2
        v += beta * LD_T(c, (i64)(m + i) * rsc); /* a convolution's bias */
#elif HAS_C
        const i64 c_at = (i64)(m + i) * rsc + (i64)(n0 + 16 * j) * csc;
        if (csc == 0) v += beta * LD_T(c, c_at);
#if T_IS_FLOAT
        else if (csc == 1 && 16 * j + 16 <= end) v += beta * LOAD16(c + c_at);
#endif
        else for (i32 l = 0; l < 16 && 16 * j + l < end; l++) ((float *)&v)[l] += beta * LD_T(c, c_at + l * csc);
#endif
#if B_MODE == 2
        i32 plane_row = at_row[j], column = at_column[j];
        i32 pixels = (plane_row / plane_h * out_h + plane_row % plane_h) * out_w; /* before the row */
        if (VECTOR_STORE && whole[j]) {
          STORE16(out + pixels + column, FINISH16(v, out + pixels + column));
        } else {
          for (i32 l = 0; l < 16 && 16 * j + l < to; l++) {
            if (column < out_w && plane_row % plane_h < out_h) ST_T(out, pixels + column, FINISH1(((VALUE *)&v)[l], out + pixels + column));
            if (++column == plane_w) {
              column = 0;
              plane_row++;
              pixels = (plane_row / plane_h * out_h + plane_row % plane_h) * out_w;
            }
          }
        }
#else
        if (VECTOR_STORE && 16 * j >= from && 16 * j + 16 <= end) {
          STORE16(out + n0 + 16 * j, FINISH16(v, out + n0 + 16 * j));
        } else {
          for (i32 l = 0; l < 16; l++)
            if (16 * j + l >= from && 16 * j + l < end)
              ST_T(out, n0 + 16 * j + l, FINISH1(((VALUE *)&v)[l], out + n0 + 16 * j + l));
        }
#endif
      }
    }
  }
}
