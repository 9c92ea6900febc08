/* The transforms of Winograd's F(4x4, 3x3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016)
   along one axis, on six vectors that lie `step` apart. */

/* d := B' d: six pixels into the operands of six products. */
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

/* d := A' d: six products become four pixels, in the first four. */
FN void to_pixels(float16 *d, const i32 step) {
  const float16 d0 = d[0], d5 = d[5 * step];
  const float16 sum = d[step] + d[2 * step], difference = d[step] - d[2 * step];
  const float16 sum2 = d[3 * step] + d[4 * step], difference2 = d[3 * step] - d[4 * step];
  d[0] = d0 + sum + sum2;
  d[step] = difference + 2.0f * difference2;
  d[2 * step] = sum + 4.0f * sum2;
  d[3 * step] = difference + 8.0f * difference2 + d5;
}
