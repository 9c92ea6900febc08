/* y = f(x) * W + bias for CPUs, where f are the elementwise nodes before a product (see gpurt.device.prologue).

   The rows of x are pixels with their channels, or those of a matrix. An item computes f of a `block` of rows into an
   array that stays in its core's cache, and multiplies MR of them at a time with each of its tiles of NV panels of W. */
KFN(1, 1, 1) fed_product(
    PROLOGUE_PARAMS INPUT(float, w), TENSOR(float, y),
#if HAS_BIAS
    INPUT(float, bias),
#endif
    EPILOGUE_PARAMS const i32 M, const i32 N, const i32 K, const i32 y_row, const i32 rows, const i32 block,
    const i32 tiles, const i32 each) {
  PROLOGUE_OPEN
  OPEN_IN(float, w);
  OPEN(float, y);
#if HAS_BIAS
  OPEN_IN(float, bias);
#endif
  EPILOGUE_OPEN
#ifdef EPILOGUE
  const GLOBAL float *const y_first = y;
#endif
  float16 data[STAGE / 16];
  const i32 pitch = (K + 31) / 16; /* a row of a power of two would crowd the same lines of the cache as the others */
  const i64 panel = (i64)K * 16;
  const i32 tile_first = GROUP(0) * each;
  const i32 tile_end = tile_first + each < tiles ? tile_first + each : tiles;
  const i32 first = GROUP(1) * rows;
  const i32 stop = first + rows < M ? first + rows : M;
  for (i32 m = first; m < stop; m += block) {
    const i32 count = m + block < stop ? block : stop - m;
    for (i32 i = 0; i < count; i++) {
      float *const row = (float *)(data + i * pitch);
      PROLOGUE_SLICE((i64)(m + i))
      i32 k = 0;
      for (; k + 8 <= K; k += 8) *(float8 *)(row + k) = prologue8(k, 0 PROLOGUE_PASS);
      for (; k < K; k++) row[k] = prologue1(k, 0 PROLOGUE_PASS);
    }
    for (i32 tile = tile_first; tile < tile_end; tile++)
      for (i32 r = 0; r < count; r += MR) {
        const float *restrict p[MR];
        const GLOBAL float *restrict f = w + tile * NV * panel;
        float16 acc[MR][NV];
#pragma unroll
        for (i32 i = 0; i < MR; i++) {
          p[i] = (const float *)(data + (r + i < count ? r + i : count - 1) * pitch); /* what repeats is not stored */
#pragma unroll
          for (i32 j = 0; j < NV; j++) acc[i][j] = (float16)(0.0f);
        }
        PRODUCTS(K)
#pragma unroll
        for (i32 i = 0; i < MR; i++) {
          if (r + i >= count) continue;
#pragma unroll
          for (i32 j = 0; j < NV; j++) {
            const i32 n = (tile * NV + j) * 16;
            STORE_COLUMNS(y + (i64)(m + r + i) * y_row + n, acc[i][j], N - n, bias + n)
          }
        }
      }
  }
}
