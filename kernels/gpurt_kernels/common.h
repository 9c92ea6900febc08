/* What every kernel may use, in both dialects: item indices and NaN-aware minimum and maximum. */
#define INDEX(d) ((i64)GROUP(d) * ITEMS(d) + ITEM(d))
#define CEIL_DIV(a, b) (((a) + (b) - 1) / (b))
#ifndef INFINITY
#define INFINITY AS_F32(0x7f800000)
#endif
#ifndef NAN
#define NAN AS_F32(0x7fc00000)
#endif
/* ONNX follows NumPy: a NaN operand wins, unlike fmin and fmax. For integers the first comparison is always false. */
#define MAX_NAN(a, b) ((a) != (a) ? (a) : ((b) != (b) ? (b) : ((a) > (b) ? (a) : (b))))
#define MIN_NAN(a, b) ((a) != (a) ? (a) : ((b) != (b) ? (b) : ((a) < (b) ? (a) : (b))))
