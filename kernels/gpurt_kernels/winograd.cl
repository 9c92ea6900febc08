/* Winograd's F(4x4, 3x3) for CPUs: convolutions of 3x3 with stride 1 as 36 products over tiles of 4x4 output pixels
   (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016). Both kernels take 16 tiles at a time,
   one in each lane: a panel of the products' right operand. Tiles are numbered over all images, row by row; lanes past
   the last tile repeat it and are not stored. */
struct __attribute__((packed)) unaligned {
  float16 v;
};
#define LANES 16

/* d := B' d along one axis, on six vectors that lie `step` apart. */
FN void to_tiles(float16 *d, const i32 step) {
  const float16 d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
  const float16 even = d4 - 4.0f * d2, odd = d3 - 4.0f * d1;
  const float16 even2 = d4 - d2, odd2 = 2.0f * (d3 - d1);
  d[0] = 4.0f * d0 - 5.0f * d2 + d4;
  d[step] = even + odd;
  d[2 * step] = even - odd;
  d[3 * step] = even2 + odd2;
  d[4 * step] = even2 - odd2;
  d[5 * step] = 4.0f * d1 - 5.0f * d3 + d5;
}

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
    for (i32 i = 0; i < 36; i++) ((GLOBAL struct unaligned *)(out + i * matrix))->v = d[i];
  }
}

/* d := A' d along one axis: six vectors that lie `step` apart become four. */
FN void to_pixels(float16 *d, const i32 step) {
  const float16 d0 = d[0], d5 = d[5 * step];
  const float16 sum = d[step] + d[2 * step], difference = d[step] - d[2 * step];
  const float16 sum2 = d[3 * step] + d[4 * step], difference2 = d[3 * step] - d[4 * step];
  d[0] = d0 + sum + sum2;
  d[step] = difference + 2.0f * difference2;
  d[2 * step] = sum + 4.0f * sum2;
  d[3 * step] = difference + 8.0f * difference2 + d5;
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
    for (i32 i = 0; i < 36; i++) d[i] = ((const GLOBAL struct unaligned *)(in + i * matrix))->v;
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
