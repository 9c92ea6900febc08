/* Images into padded planes, one for each phase of the strides, so that a convolution needs no border checks.

   An output pixel (d, h, w) reads the input at d * stride + tap - pad. Positions with the same remainder by the stride
   form a phase: a plane of depth x height x width values, of which pixel (d, h, w) of every tap in that phase reads the
   one at (d, h, w) plus a constant. Hence a tap of a channel is one offset for all pixels, and neighbouring pixels are
   neighbours in memory whatever the stride. `first` holds for each phase where its value 0 lies in the input, by axis.
   Values outside the input are zero, and so are the `slack` elements behind the last plane, which the CPU class's last
   tile of columns reads. */
FN i32 clamp_(const i32 x, const i32 low, const i32 high) { return x < low ? low : x > high ? high : x; }

#ifdef GP_CPU_CLASS
KFN(1, 1, 1)
#else
KFN(256, 1, 1)
#endif
conv_pad(INPUT(T, x), TENSOR(TP, y), INPUT(i32, first), const i32 images, const i32 phases, const i32 D, const i32 H,
         const i32 W, const i32 depth, const i32 height, const i32 width, const i32 stride_d, const i32 stride_h,
         const i32 stride_w, const i32 slack) {
  OPEN_IN(T, x);
  OPEN(TP, y);
  OPEN_IN(i32, first);
#ifdef GP_CPU_CLASS
  /* one image and phase an item, row by row */
  const i32 index = GROUP(0), image = index / phases;
  const GLOBAL i32 *at = first + 3 * (index % phases);
  const GLOBAL T *restrict from = x + (i64)image * D * H * W;
  GLOBAL TP *restrict to = y + (i64)index * depth * height * width;
  const i32 begin = clamp_(at[2] >= 0 ? 0 : (-at[2] + stride_w - 1) / stride_w, 0, width);
  const i32 end = clamp_(at[2] >= W ? 0 : (W - at[2] + stride_w - 1) / stride_w, begin, width);
  for (i32 row = 0; row < depth * height; row++) {
    const i32 d = row / height * stride_d + at[0], h = row % height * stride_h + at[1];
    if (d < 0 || d >= D || h < 0 || h >= H) {
      for (i32 i = 0; i < width; i++) to[i] = 0;
    } else {
      const GLOBAL T *restrict line = from + ((i64)d * H + h) * W + at[2];
      for (i32 i = 0; i < begin; i++) to[i] = 0;
      if (stride_w == 1)
        for (i32 i = begin; i < end; i++) to[i] = LD_T(line, i);
      else
        for (i32 i = begin; i < end; i++) to[i] = LD_T(line, (i64)i * stride_w);
      for (i32 i = end; i < width; i++) to[i] = 0;
    }
    to += width;
  }
  if (index == images * phases - 1)
    for (i32 i = 0; i < slack; i++) to[i] = 0;
#else
  const i64 index = INDEX(0);
  const i64 plane = (i64)depth * height * width;
  if (index >= plane * images * phases) return;
  const i32 in_plane = (i32)(index % plane), which = (i32)(index / plane);
  const GLOBAL i32 *at = first + 3 * (which % phases);
  const i32 w = in_plane % width * stride_w + at[2], row = in_plane / width;
  const i32 h = row % height * stride_h + at[1], d = row / height * stride_d + at[0];
  const i32 inside = d >= 0 && d < D && h >= 0 && h < H && w >= 0 && w < W;
  ST_TP(y, index, inside ? LD_T(x, (((i64)(which / phases) * D + d) * H + h) * W + w) : 0.0f);
#endif
}
