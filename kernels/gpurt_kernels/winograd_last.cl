/* Winograd's F(4x4, 3x3) with channels last, for CPUs: a 3x3 convolution of stride 1 as 36 products over tiles of 4x4
   output pixels (see winograd.h), block after block of tiles.

   A block's operands and products are v[36][tile][channel] and m[36][tile][filter], in workspaces that each item has to
   itself and that stay in its core's cache. An item computes `part` of the filters, for which it transforms its tiles
   once: so items that share tiles need not all read all filters. These are packed: u[36][panel][channel][16]. Channels
   and filters come in multiples of 16. Tiles are numbered over all images, row by row. */
KFN(1, 1, 1) winograd_last(
    INPUT(float, x), INPUT(float, u), INPUT(float, zeros), TENSOR(float, v), TENSOR(float, m), TENSOR(float, y),
#if HAS_BIAS
    INPUT(float, bias),
#endif
    EPILOGUE_PARAMS const i32 tiles, const i32 block, const i32 rows, const i32 columns, const i32 H, const i32 W,
    const i32 C, const i32 OH, const i32 OW, const i32 F, const i32 y_row, const i32 part, const i32 begin_h,
    const i32 begin_w) {
  OPEN_IN(float, x);
  OPEN_IN(float, u);
  OPEN_IN(float, zeros);
  OPEN(float, v);
  OPEN(float, m);
  OPEN(float, y);
  EPILOGUE_OPEN
#ifdef EPILOGUE
  const GLOBAL float *const y_first = y;
#endif
#if HAS_BIAS
  OPEN_IN(float, bias);
#endif
  const i64 operand = (i64)block * C, product = (i64)block * part;
  const i32 f0 = GROUP(1) * part;
  v += (GROUP(1) * GROUPS(0) + GROUP(0)) * 36 * operand;
  m += (GROUP(1) * GROUPS(0) + GROUP(0)) * 36 * product;
  for (i32 first = GROUP(0) * block; first < tiles; first += GROUPS(0) * block) {
    const i32 count = tiles - first < block ? tiles - first : block;

    for (i32 t = 0; t < count; t++) {
      const i32 image = (first + t) / (rows * columns), within = (first + t) % (rows * columns);
      const i32 h0 = within / columns * 4 - begin_h, w0 = within % columns * 4 - begin_w;
      const GLOBAL float *const from = x + (((i64)image * H + h0) * W + w0) * C;
      const i32 inside = h0 >= 0 && w0 >= 0 && h0 + 6 <= H && w0 + 6 <= W;
      for (i32 c = 0; c < C; c += 16) {
        float16 d[36];
        if (inside) {
#pragma unroll
          for (i32 i = 0; i < 36; i++) d[i] = LOAD16(from + ((i64)(i / 6) * W + i % 6) * C + c);
        } else {
#pragma unroll
          for (i32 i = 0; i < 36; i++) {
            const i32 h = h0 + i / 6, w = w0 + i % 6, exists = h >= 0 && h < H && w >= 0 && w < W;
            d[i] = LOAD16(exists ? from + ((i64)(i / 6) * W + i % 6) * C + c : zeros);
          }
        }
#pragma unroll
        for (i32 i = 0; i < 6; i++) to_tiles(d + 6 * i, 1);
#pragma unroll
        for (i32 j = 0; j < 6; j++) to_tiles(d + j, 6);
        GLOBAL float *const to = v + (i64)t * C + c;
#pragma unroll
        for (i32 i = 0; i < 36; i++) STORE16(to + i * operand, d[i]);
      }
    }

    for (i32 e = 0; e < 36; e++) {
      for (i32 n = 0; n < part; n += 16 * NV) {
        const GLOBAL float *restrict const f = u + ((i64)e * F + f0 + n) * C;
        for (i32 t = 0; t < count; t += MR) {
          float16 acc[MR][NV];
          const GLOBAL float *p[MR];
#pragma unroll
          for (i32 i = 0; i < MR; i++) {
            p[i] = v + e * operand + (i64)(t + i < count ? t + i : count - 1) * C;
#pragma unroll
            for (i32 j = 0; j < NV; j++) acc[i][j] = (float16)(0.0f);
          }
          for (i32 k = 0; k < C; k++) {
            float16 b[NV];
#pragma unroll
            for (i32 j = 0; j < NV; j++) b[j] = LOAD16(f + ((i64)j * C + k) * 16);
#pragma unroll
            for (i32 i = 0; i < MR; i++) {
              const float a = p[i][k];
#pragma unroll
              for (i32 j = 0; j < NV; j++) acc[i][j] += a * b[j];
            }
          }
#pragma unroll
          for (i32 i = 0; i < MR; i++) {
            if (t + i >= count) continue;
#pragma unroll
            for (i32 j = 0; j < NV; j++) STORE16(m + e * product + (i64)(t + i) * part + n + 16 * j, acc[i][j]);
          }
        }
      }
    }

    for (i32 t = 0; t < count; t++) {
      const i32 image = (first + t) / (rows * columns), within = (first + t) % (rows * columns);
      const i32 h0 = within / columns * 4, w0 = within % columns * 4;
      for (i32 n = 0; n < part; n += 16) {
        float16 d[36];
#pragma unroll
        for (i32 i = 0; i < 36; i++) d[i] = LOAD16(m + i * product + (i64)t * part + n);
#pragma unroll
        for (i32 j = 0; j < 6; j++) to_pixels(d + j, 6);
#pragma unroll
        for (i32 i = 0; i < 4; i++) to_pixels(d + 6 * i, 1);
#if HAS_BIAS
        const float16 added = LOAD16(bias + f0 + n);
#else
        const float16 added = (float16)(0.0f);
#endif
#pragma unroll
        for (i32 i = 0; i < 16; i++) {
          const i32 h = h0 + i / 4, w = w0 + i % 4;
          if (h >= OH || w >= OW) continue;
          GLOBAL float *const to = y + (((i64)image * OH + h) * OW + w) * y_row + f0 + n;
          const float16 value = d[i / 4 * 6 + i % 4] + added;
          STORE16(to, FINISH16(value, to));
        }
      }
    }
  }
}
