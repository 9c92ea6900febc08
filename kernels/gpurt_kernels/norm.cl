/* Normalisation of rows: y = (x - mean) * inverse deviation * scale + bias over rows of r elements.
 *
 * T is the type of x, S of scale and bias, U of y, M of the statistics, A the one computed in. RMS leaves the mean out.
 * SCALE and BIAS say which are there. ELEMENT: they have an entry for each element of a row (layer normalisation); else
 * for each channel, where a row is `channels` channels of `spatial` elements and `groups` rows make up an image (group and
 * instance normalisation). MEAN and DEVIATION say which statistics are stored.
 *
 * A prologue (see chains.h) is computed once, into y or with PROLOGUE_OUT into a tensor that is wanted besides, which
 * then holds the data.
 *
 * The variance is taken around the mean in a second pass over the row, which then lies in the cache.
 */
#ifdef PROLOGUE_OUT
#define STORED_PARAM TENSOR(T, stored),
#define OPEN_STORED OPEN(T, stored)
#define STORED (stored + row * r)
#else
#define STORED_PARAM
#define OPEN_STORED
#define STORED q
#endif
#ifdef SCALE
#define SCALE_PARAM INPUT(S, scale),
#define OPEN_SCALE OPEN_IN(S, scale)
#else
#define SCALE_PARAM
#define OPEN_SCALE
#endif
#ifdef BIAS
#define BIAS_PARAM INPUT(S, bias),
#define OPEN_BIAS OPEN_IN(S, bias)
#else
#define BIAS_PARAM
#define OPEN_BIAS
#endif
#ifdef MEAN
#define MEAN_PARAM TENSOR(M, mean_out),
#define OPEN_MEAN OPEN(M, mean_out)
#else
#define MEAN_PARAM
#define OPEN_MEAN
#endif
#ifdef DEVIATION
#define DEVIATION_PARAM TENSOR(M, inverse_out),
#define OPEN_DEVIATION OPEN(M, inverse_out)
#else
#define DEVIATION_PARAM
#define OPEN_DEVIATION
#endif
#define PARAMS DATA_PARAM STORED_PARAM SCALE_PARAM BIAS_PARAM TENSOR(U, y), EPILOGUE_PARAMS MEAN_PARAM DEVIATION_PARAM const i64 rows, const i64 per
#define GEOMETRY const i32 r, const i32 groups, const i32 channels, const i32 spatial, const float epsilon
#define OPEN_ALL \
  OPEN_DATA; \
  OPEN_STORED; \
  OPEN_SCALE; \
  OPEN_BIAS; \
  OPEN(U, y); \
  EPILOGUE_OPEN; \
  OPEN_MEAN; \
  OPEN_DEVIATION

#ifdef GP_CPU_CLASS

FN A sum8(A8 v) { return ((v.s0 + v.s4) + (v.s1 + v.s5)) + ((v.s2 + v.s6) + (v.s3 + v.s7)); }

FN A row_sum(const GLOBAL T *p, i32 r) {
  A8 total = 0;
  i32 i = 0;
  while (i + 16 <= r) {
    A8 a = 0, b = 0;
    const i32 stop = i + 2048 < r ? i + 2048 : r;
    for (; i + 16 <= stop; i += 16) {
      a += LD8_T(p, i);
      b += LD8_T(p, i + 8);
    }
    total += a + b;
  }
  A sum = sum8(total);
  for (; i < r; i++) sum += LD_T(p, i);
  return sum;
}

FN A row_square_sum(const GLOBAL T *p, i32 r, A mean) {
  A8 total = 0;
  i32 i = 0;
  while (i + 16 <= r) {
    A8 a = 0, b = 0;
    const i32 stop = i + 2048 < r ? i + 2048 : r;
    for (; i + 16 <= stop; i += 16) {
      const A8 v = LD8_T(p, i) - mean, w = LD8_T(p, i + 8) - mean;
      a += v * v;
      b += w * w;
    }
    total += a + b;
  }
  A sum = sum8(total);
  for (; i < r; i++) {
    const A v = LD_T(p, i) - mean;
    sum += v * v;
  }
  return sum;
}

KFN(1, 1, 1) normalize_rows(PARAMS, GEOMETRY) {
  OPEN_ALL;
  const i64 first = GROUP(0) * per;
  const i64 last = first + per < rows ? first + per : rows;
  for (i64 row = first; row < last; row++) {
    GLOBAL U *q = y + row * r;
    SLICE(row, r);
#ifdef PROLOGUE
    GLOBAL T *p = STORED;
    i32 done = 0;
    for (; done + 8 <= r; done += 8) ST8_T(p, done, ROW8(done));
    for (; done < r; done++) {
      const A v = ROW1(done);
      ST_T(p, done, v);
    }
#endif
#ifdef RMS
    const A mean = 0;
#else
    const A mean = row_sum(p, r) / r;
#endif
    const A inverse = 1 / sqrt(row_square_sum(p, r, mean) / r + (A)epsilon);
#ifdef MEAN
    ST_M(mean_out, row, mean);
#endif
#ifdef DEVIATION
    ST_M(inverse_out, row, inverse);
#endif
#ifdef ELEMENT
    i32 i = 0;
    for (; i + 8 <= r; i += 8) {
      A8 v = (LD8_T(p, i) - mean) * inverse;
#ifdef SCALE
      v *= LD8_S(scale, i);
#endif
#ifdef BIAS
      v += LD8_S(bias, i);
#endif
      ST8_U(q, i, DONE8(v, row * r + i));
    }
    for (; i < r; i++) {
      A v = (LD_T(p, i) - mean) * inverse;
#ifdef SCALE
      v *= LD_S(scale, i);
#endif
#ifdef BIAS
      v += LD_S(bias, i);
#endif
      ST_U(q, i, DONE1(v, row * r + i));
    }
#else
    for (i32 channel = 0; channel < channels; channel++) {
      const i64 at = row % groups * channels + channel;
      A factor = inverse, shift = 0;
#ifdef SCALE
      factor *= LD_S(scale, at);
#endif
#ifdef BIAS
      shift = LD_S(bias, at);
#endif
      i32 i = channel * spatial;
      const i32 stop = i + spatial;
      for (; i + 8 <= stop; i += 8) ST8_U(q, i, DONE8((LD8_T(p, i) - mean) * factor + shift, row * r + i));
      for (; i < stop; i++) {
        const A v = (LD_T(p, i) - mean) * factor + shift;
        ST_U(q, i, DONE1(v, row * r + i));
      }
    }
#endif
  }
}

#else

/* With SHARED_ROW a group works on one row; without it each item has its own, where rows are too short for a group. */
KFN(BLOCK, 1, 1) normalize_rows(PARAMS, GEOMETRY) {
#ifdef SHARED_ROW
  SHARED A tile[BLOCK];
#define FIRST ITEM(0)
#define NEXT BLOCK
#define TOTAL(v) \
  tile[ITEM(0)] = v; \
  BARRIER; \
  for (i32 half_ = BLOCK / 2; half_ > 0; half_ >>= 1) { \
    if (ITEM(0) < half_) tile[ITEM(0)] += tile[ITEM(0) + half_]; \
    BARRIER; \
  } \
  v = tile[0]; \
  BARRIER
#else
#define FIRST 0
#define NEXT 1
#define TOTAL(v)
#endif
  OPEN_ALL;
#ifdef SHARED_ROW
  const i64 row = GROUP(0);
#else
  const i64 row = INDEX(0);
  if (row >= rows) return;
#endif
  GLOBAL U *q = y + row * r;
  SLICE(row, r);
#ifdef PROLOGUE
  GLOBAL T *p = STORED; /* an item reads what it has written itself */
  for (i32 i = FIRST; i < r; i += NEXT) {
    const A v = ROW1(i);
    ST_T(p, i, v);
  }
#endif
#ifdef RMS
  const A mean = 0;
#else
  A sum = 0;
  for (i32 i = FIRST; i < r; i += NEXT) sum += LD_T(p, i);
  TOTAL(sum);
  const A mean = sum / r;
#endif
  A squares = 0;
  for (i32 i = FIRST; i < r; i += NEXT) {
    const A v = LD_T(p, i) - mean;
    squares += v * v;
  }
  TOTAL(squares);
  const A inverse = 1 / sqrt(squares / r + (A)epsilon);
  if (FIRST == 0) {
#ifdef MEAN
    ST_M(mean_out, row, mean);
#endif
#ifdef DEVIATION
    ST_M(inverse_out, row, inverse);
#endif
  }
  for (i32 i = FIRST; i < r; i += NEXT) {
#ifdef ELEMENT
    const i32 at = i;
#else
    const i32 at = (i32)(row % groups) * channels + i / spatial;
#endif
    A v = (LD_T(p, i) - mean) * inverse;
#ifdef SCALE
    v *= LD_S(scale, at);
#endif
#ifdef BIAS
    v += LD_S(bias, at);
#endif
    ST_U(q, i, DONE1(v, row * r + i));
  }
}
#endif
