/* Pools over regions of interest, and the reversed windows: MaxUnpool and Col2Im. After rows.h. */

#ifdef ROI_ALIGN
/* Elements of a row are the bins of a region, for BLOCK_C channels at once: they share the samples' places. */
ROW_KERNEL roi_align(INPUT(T, x), INPUT(T, rois), INPUT(i64, images), TENSOR(T, y), const i32 count, const i32 channels,
                     const i32 height, const i32 width, const i32 bins_w, const i32 ratio, const A scale,
                     const A shift, ROW_PARAMS) {
  OPEN_IN(T, x);
  OPEN_IN(T, rois);
  OPEN_IN(i64, images);
  OPEN(T, y);
  const i32 blocks = CEIL_DIV(channels, BLOCK_C);
  const i32 bins_h = (i32)(inner / bins_w);
  EACH_ROW(row) {
    const i64 roi = row / blocks;
    const i32 first = (i32)(row % blocks) * BLOCK_C;
    i64 image = images[roi];
    image = image < 0 ? 0 : image >= count ? count - 1 : image;
    const A left = (A)LD_T(rois, roi * 4) * scale - shift;
    const A top = (A)LD_T(rois, roi * 4 + 1) * scale - shift;
    A roi_w = (A)LD_T(rois, roi * 4 + 2) * scale - shift - left;
    A roi_h = (A)LD_T(rois, roi * 4 + 3) * scale - shift - top;
#ifndef HALF_PIXEL
    roi_w = roi_w > (A)1 ? roi_w : (A)1;
    roi_h = roi_h > (A)1 ? roi_h : (A)1;
#endif
    const A bin_h = roi_h / (A)bins_h, bin_w = roi_w / (A)bins_w;
    /* A device's division may miss an exact quotient by a little, and ceil would make a sample of it. */
    const A whole_h = rint(bin_h), whole_w = rint(bin_w);
    const i32 grid_h = ratio > 0 ? ratio : (i32)(whole_h * (A)bins_h == roi_h ? whole_h : ceil(bin_h));
    const i32 grid_w = ratio > 0 ? ratio : (i32)(whole_w * (A)bins_w == roi_w ? whole_w : ceil(bin_w));
    const GLOBAL T *base = x + (image * channels + first) * height * width;
    EACH(i) {
      const i32 bin_y = (i32)(i / bins_w), bin_x = (i32)(i % bins_w);
      A sum[BLOCK_C];
      UNROLL for (i32 c = 0; c < BLOCK_C; c++) sum[c] = START;
      for (i32 iy = 0; iy < grid_h; iy++) {
        const A py = top + (A)bin_y * bin_h + ((A)iy + (A)0.5f) * bin_h / (A)grid_h;
        for (i32 ix = 0; ix < grid_w; ix++) {
          const A px = left + (A)bin_x * bin_w + ((A)ix + (A)0.5f) * bin_w / (A)grid_w;
          /* NaN is outside too. */
          const i32 valid = py >= (A)-1 && py <= (A)height && px >= (A)-1 && px <= (A)width;
          const A cy = valid && py > (A)0 ? py : (A)0, cx = valid && px > (A)0 ? px : (A)0;
          i32 y0 = (i32)cy, x0 = (i32)cx;
          y0 = y0 < height - 1 ? y0 : height - 1;
          x0 = x0 < width - 1 ? x0 : width - 1;
          const i32 y1 = y0 < height - 1 ? y0 + 1 : y0, x1 = x0 < width - 1 ? x0 + 1 : x0;
          const A fy = y1 > y0 ? cy - (A)y0 : (A)0, fx = x1 > x0 ? cx - (A)x0 : (A)0;
          const A w00 = ((A)1 - fy) * ((A)1 - fx), w01 = ((A)1 - fy) * fx, w10 = fy * ((A)1 - fx), w11 = fy * fx;
          for (i32 c = 0; c < BLOCK_C; c++) {
            if (first + c >= channels) break;
            const GLOBAL T *p = base + (i64)c * height * width;
            A v = (A)0;
            if (valid) {
              const A a00 = w00 * (A)LD_T(p, (i64)y0 * width + x0), a01 = w01 * (A)LD_T(p, (i64)y0 * width + x1);
              const A a10 = w10 * (A)LD_T(p, (i64)y1 * width + x0), a11 = w11 * (A)LD_T(p, (i64)y1 * width + x1);
              v = COMBINE(COMBINE(a00, a01), COMBINE(a10, a11));
            }
            sum[c] = COMBINE(sum[c], v);
          }
        }
      }
      const i32 none = grid_h <= 0 || grid_w <= 0;
      for (i32 c = 0; c < BLOCK_C; c++)
        if (first + c < channels)
          ST_T(y, (roi * channels + first + c) * inner + i, none ? (A)0 : END(sum[c], (A)grid_h * (A)grid_w));
    }
  }
}
#endif

#ifdef MAX_ROI_POOL
FN i32 rounded(const A v) {
  const A r = v < (A)0 ? ceil(v - (A)0.5f) : floor(v + (A)0.5f); /* halves away from zero */
  return r > (A)-1e8f ? (r < (A)1e8f ? (i32)r : 100000000) : -100000000;
}

/* A row is a channel of a region. The bins' edges are whole: exact in integers. */
ROW_KERNEL max_roi_pool(INPUT(T, x), INPUT(T, rois), TENSOR(T, y), const i32 count, const i32 channels,
                        const i32 height, const i32 width, const i32 bins_w, const A scale, ROW_PARAMS) {
  OPEN_IN(T, x);
  OPEN_IN(T, rois);
  OPEN(T, y);
  const i64 bins_h = inner / bins_w;
  EACH_ROW(row) {
    const i64 roi = row / channels;
    i32 image = rounded((A)LD_T(rois, roi * 5));
    image = image < 0 ? 0 : image >= count ? count - 1 : image;
    const i32 left = rounded((A)LD_T(rois, roi * 5 + 1) * scale), top = rounded((A)LD_T(rois, roi * 5 + 2) * scale);
    i64 roi_w = rounded((A)LD_T(rois, roi * 5 + 3) * scale) - left + 1;
    i64 roi_h = rounded((A)LD_T(rois, roi * 5 + 4) * scale) - top + 1;
    roi_w = roi_w > 1 ? roi_w : 1;
    roi_h = roi_h > 1 ? roi_h : 1;
    const GLOBAL T *p = x + ((i64)image * channels + row % channels) * height * width;
    EACH(i) {
      const i64 bin_y = i / bins_w, bin_x = i % bins_w;
      i64 y0 = bin_y * roi_h / bins_h + top, y1 = CEIL_DIV((bin_y + 1) * roi_h, bins_h) + top;
      i64 x0 = bin_x * roi_w / bins_w + left, x1 = CEIL_DIV((bin_x + 1) * roi_w, bins_w) + left;
      y0 = y0 < 0 ? 0 : y0;
      x0 = x0 < 0 ? 0 : x0;
      y1 = y1 > height ? height : y1;
      x1 = x1 > width ? width : x1;
      A best = y0 < y1 && x0 < x1 ? (A)LD_T(p, y0 * width + x0) : (A)0; /* an empty bin is zero */
      for (i64 v = y0; v < y1; v++)
        for (i64 u = x0; u < x1; u++) {
          const A value = (A)LD_T(p, v * width + u);
          best = MAX_NAN(best, value);
        }
      ST_T(y, (i64)row * inner + i, best);
    }
  }
}
#endif

#ifdef MAX_UNPOOL
ROW_KERNEL zeros(TENSOR(T, y), ROW_PARAMS) {
  OPEN(T, y);
  EACH_ROW(row) EACH(i) y[row * inner + i] = 0;
}

/* Indices count in a tensor of the sizes n, which lies in the first corner of the output with the strides s. */
ROW_KERNEL max_unpool(INPUT(T, x), INPUT(i64, indices), TENSOR(T, y), const i64 total, ROW_PARAMS PARAMS) {
  OPEN_IN(T, x);
  OPEN_IN(i64, indices);
  OPEN(T, y);
  const i64 n[RANK] = LIST_N, s[RANK] = LIST_S;
  EACH_ROW(row) EACH(i) {
    i64 rest = indices[i], at = 0;
    if (rest >= 0 && rest < total) {
      UNROLL for (i32 d = RANK - 1; d >= 0; d--) {
        at += rest % n[d] * s[d];
        rest /= n[d];
      }
      y[at] = x[i];
    }
  }
}
#endif

#ifdef COL2IM
/* A row is a channel of an image. Every element adds up what the blocks that cover it have for it: n are the sizes of
 * the image, b of a block, m the numbers of blocks, s their strides, d dilations, p pads. */
ROW_KERNEL col2im(INPUT(T, x), TENSOR(T, y), const i64 taps, const i64 blocks, ROW_PARAMS PARAMS) {
  OPEN_IN(T, x);
  OPEN(T, y);
  const i64 n[RANK] = LIST_N, b[RANK] = LIST_B, m[RANK] = LIST_M, s[RANK] = LIST_S, d[RANK] = LIST_D, p[RANK] = LIST_P;
  EACH_ROW(row) EACH(i) {
    i64 place[RANK];
    i64 rest = i;
    UNROLL for (i32 r = RANK - 1; r >= 0; r--) {
      place[r] = rest % n[r] + p[r];
      rest /= n[r];
    }
    T_ACC sum = 0;
    for (i64 tap = 0; tap < taps; tap++) {
      i64 left = tap, column = 0, step = 1;
      i32 covers = 1;
      UNROLL for (i32 r = RANK - 1; r >= 0; r--) {
        const i64 begin = place[r] - left % b[r] * d[r]; /* where a block begins that has the element at this tap */
        const i64 block = begin / s[r];
        covers &= begin >= 0 && block * s[r] == begin && block < m[r];
        column += block * step;
        step *= m[r];
        left /= b[r];
      }
      if (covers) sum += LD_T(x, ((i64)row * taps + tap) * blocks + column);
    }
    ST_T(y, (i64)row * inner + i, sum);
  }
}
#endif
