/* Sums of products with filters in panels of 16, MR rows by NV panels at a time; needs lanes16.h and batch.h. */

/* acc += the products of `run` values of each of MR pixels, at p, with the filters at f, which moves on. */
#define PRODUCTS(run)                                                        \
  for (i32 k = 0; k < (run); k++) {                                          \
    float16 b[NV];                                                           \
    _Pragma("unroll") for (i32 j = 0; j < NV; j++) b[j] = LOAD16(f + j * panel + k * 16); \
    _Pragma("unroll") for (i32 i = 0; i < MR; i++) {                         \
      const float a = p[i][k];                                               \
      _Pragma("unroll") for (i32 j = 0; j < NV; j++) acc[i][j] += a * b[j];  \
    }                                                                        \
  }                                                                          \
  f += (i64)(run) * 16;

/* The sums v of 16 columns are stored at `target`, `left` of them if they are fewer, with bias and whatever follows. */
#if HAS_BIAS
#define ADD_BIAS16(v, bias) v += LOAD16(bias);
#define ADD_BIAS(v, bias, left) for (i32 l = 0; l < left; l++) ((float *)&v)[l] += (bias)[l];
#else
#define ADD_BIAS16(v, bias)
#define ADD_BIAS(v, bias, left)
#endif
#define STORE_COLUMNS(target, sums, columns, bias)                                          \
  {                                                                                         \
    GLOBAL float *const to = target;                                                        \
    const i32 left = columns;                                                               \
    float16 v = sums;                                                                       \
    if (left >= 16) {                                                                       \
      ADD_BIAS16(v, bias)                                                                   \
      STORE16(to, FINISH16(v, to));                                                         \
    } else {                                                                                \
      ADD_BIAS(v, bias, left)                                                               \
      if (left >= 8) STORE8(to, FINISH8(v.lo, to));                                         \
      for (i32 l = left >= 8 ? 8 : 0; l < left; l++) to[l] = FINISH1(((float *)&v)[l], to + l); \
    }                                                                                       \
  }
