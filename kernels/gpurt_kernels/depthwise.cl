/* Depthwise convolution for CPUs over padded planes (see conv_pad.cl): a channel's rows in vectors of 16 pixels.

   A tap is one offset for all pixels of a plane, whatever the stride. ROWS rows are summed at a time, so that a weight
   is read once for all of them. In planes narrower than a vector, its last lanes run over into the next row, which is
   stored later and puts them right; only where no such row follows are pixels stored one by one. */
KFN(1, 1, 1) depthwise(
    INPUT(float, x), INPUT(float, w), TENSOR(float, y),
#if HAS_BIAS
    INPUT(float, bias),
#endif
    INPUT(i32, table), EPILOGUE_PARAMS const i32 planes, const i32 filters, const i32 multiplier, const i64 plane,
    const i32 plane_w, const i32 H, const i32 W, const i32 per, const i32 rows_per) {
  OPEN_IN(float, x);
  OPEN_IN(float, w);
  OPEN(float, y);
  OPEN_IN(i32, table);
  EPILOGUE_OPEN
#ifdef EPILOGUE
  const GLOBAL float *const y_first = y;
#endif
#if HAS_BIAS
  OPEN_IN(float, bias);
#endif
  const i32 first = GROUP(0) * per;
  const i32 last = first + per < planes ? first + per : planes;
  const i32 begin = GROUP(1) * rows_per;
  const i32 end = begin + rows_per < H ? begin + rows_per : H;
  for (i32 p = first; p < last; p++) {
    const GLOBAL float *const weights = w + (i64)(p % filters) * TAPS;
    const GLOBAL float *const in = x + (i64)(p / multiplier) * plane;
    GLOBAL float *const out = y + (i64)p * H * W;
#if HAS_BIAS
    const float start = bias[p % filters];
#else
    const float start = 0.0f;
#endif
    for (i32 row = begin; row < end; row += ROWS) {
      for (i32 at = 0; at < W; at += 16) {
        /* The last vector of a wide row overlaps the one before it rather than run over. */
        const i32 column = at + 16 > W && W >= 16 ? W - 16 : at;
        const GLOBAL float *source[ROWS];
        float16 sum[ROWS];
#pragma unroll
        for (i32 r = 0; r < ROWS; r++) {
          sum[r] = (float16)(start);
          source[r] = in + (row + r < end ? row + r : end - 1) * plane_w + column;
        }
#if TAPS <= 25
#pragma unroll
#endif
        for (i32 k = 0; k < TAPS; k++) {
          const float weight = weights[k];
          const i32 offset = table[k];
#pragma unroll
          for (i32 r = 0; r < ROWS; r++) sum[r] += weight * LOAD16(source[r] + offset);
        }
#pragma unroll
        for (i32 r = 0; r < ROWS; r++) {
          if (row + r >= end) continue;
          GLOBAL float *const to = out + (row + r) * W + column;
          if (W >= 16 || (W >= 8 && row + r + 1 < end)) {
            STORE16(to, FINISH16(sum[r], to));
          } else {
            for (i32 l = 0; l < W; l++) to[l] = FINISH1(((float *)&sum[r])[l], to + l);
          }
        }
      }
    }
  }
}
