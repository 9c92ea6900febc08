/* Winograd's F(4x4, 3x3) for CPUs: convolutions of 3x3 with stride 1 as 36 products over tiles of 4x4 output pixels
   (see winograd.h). Both kernels take 16 tiles at a time, one in each lane: a panel of the products' right operand.
   Tiles are numbered over all images, row by row; lanes past the last tile repeat it and are not stored. */
#define LANES 16

/* Planes padded with zeros, of 4 * rows + 2 by 4 * columns + 2, into panels: v[36][panel][channel][16]. */
KFN(1, 1, 1) winograd_in(
    INPUT(float, x), TENSOR(float, v), const i32 tiles, const i32 rows, const i32 columns, const i32 channels,
    const i32 per) {
  OPEN_IN(float, x);
  OPEN(float, v);
  const i32 panel = GROUP(0), width = 4 * columns + 2;
  const i64 plane = (i64)(4 * rows + 2) * width;
  const i64 matrix = (i64)GROUPS(0) * channels * LANES; /* between the 36 operands */
  const i32 first = GROUP(1) * per;
  const i32 last = first + per < channels ? first + per : channels;
  const GLOBAL float *at[LANES];
#pragma unroll
  for (i32 l = 0; l < LANES; l++) {
    const i32 tile = panel * LANES + l < tiles ? panel * LANES + l : tiles - 1;
    const i32 image = tile / (rows * columns), within = tile % (rows * columns);
    at[l] = x + (i64)image * channels * plane + (i64)(within / columns * 4) * width + within % columns * 4;
  }
  for (i32 c = first; c < last; c++) {
    float16 d[36];
#pragma unroll
    for (i32 i = 0; i < 6; i++) {
      const i64 row = c * plane + i * width;
#pragma unroll
      for (i32 j = 0; j < 6; j++)
        d[6 * i + j] = (float16)(
            at[0][row + j], at[1][row + j], at[2][row + j], at[3][row + j], at[4][row + j], at[5][row + j],
            at[6][row + j], at[7][row + j], at[8][row + j], at[9][row + j], at[10][row + j], at[11][row + j],
            at[12][row + j], at[13][row + j], at[14][row + j], at[15][row + j]);
      to_tiles(d + 6 * i, 1);
    }
#pragma unroll
    for (i32 j = 0; j < 6; j++) to_tiles(d + j, 6);
    GLOBAL float *out = v + ((i64)panel * channels + c) * LANES;
#pragma unroll
    for (i32 i = 0; i < 36; i++) STORE16(out + i * matrix, d[i]);
  }
}

/* The products m[36][filter][panel * 16] into pixels, with bias and whatever follows. */
KFN(1, 1, 1) winograd_out(
    INPUT(float, m), TENSOR(float, y),
#if HAS_BIAS
    INPUT(float, bias),
#endif
    EPILOGUE_PARAMS const i32 tiles, const i32 rows, const i32 columns, const i32 filters, const i32 H, const i32 W,
    const i32 per) {
  OPEN_IN(float, m);
  OPEN(float, y);
  EPILOGUE_OPEN
#ifdef EPILOGUE
  const GLOBAL float *const y_first = y;
#endif
#if HAS_BIAS
  OPEN_IN(float, bias);
#endif
  const i32 panel = GROUP(0);
  const i64 stride = (i64)GROUPS(0) * LANES, matrix = stride * filters;
  const i32 first = GROUP(1) * per;
  const i32 last = first + per < filters ? first + per : filters;
  const i32 lanes = tiles - panel * LANES < LANES ? tiles - panel * LANES : LANES;
  for (i32 f = first; f < last; f++) {
    const GLOBAL float *in = m + f * stride + panel * LANES;
    float16 d[36];
#pragma unroll
    for (i32 i = 0; i < 36; i++) d[i] = LOAD16(in + i * matrix);
#pragma unroll
    for (i32 j = 0; j < 6; j++) to_pixels(d + j, 6);
#pragma unroll
    for (i32 i = 0; i < 4; i++) to_pixels(d + 6 * i, 1);
#if HAS_BIAS
#pragma unroll
    for (i32 i = 0; i < 24; i++) d[i] += bias[f];
#endif
    for (i32 l = 0; l < lanes; l++) {
      const i32 tile = panel * LANES + l;
      const i32 image = tile / (rows * columns), within = tile % (rows * columns);
      const i32 row = within / columns * 4, column = within % columns * 4;
      GLOBAL float *out = y + (((i64)image * filters + f) * H + row) * W + column;
      const float *const lane = (const float *)d + l;
      if (column + 4 <= W) {
        for (i32 i = 0; i < 4 && row + i < H; i++)
#pragma unroll
          for (i32 j = 0; j < 4; j++) out[i * W + j] = FINISH1(lane[(6 * i + j) * LANES], out + i * W + j);
      } else {
        for (i32 i = 0; i < 4 && row + i < H; i++)
          for (i32 j = 0; j < W - column; j++) out[i * W + j] = FINISH1(lane[(6 * i + j) * LANES], out + i * W + j);
      }
    }
  }
}
