/* Integer functions of elementwise kernels, defined with what C leaves undefined: wraparound, division by zero (0, as
   in NumPy), shifts by any amount. U is the unsigned type that T is computed in. */
#define INTEGER_FUNCTIONS(T, U, BITS, SIGNED)                                                       \
  FN T T##_div(const T a, const T b) {                                                              \
    if (b == 0) return 0;                                                                           \
    if (SIGNED && b == (T)-1) return (T)(-(U)a); /* the least value by -1 traps on some devices */  \
    return (T)(a / b);                                                                              \
  }                                                                                                 \
  FN T T##_fmod(const T a, const T b) { return b == 0 || (SIGNED && b == (T)-1) ? 0 : (T)(a % b); } \
  FN T T##_mod(const T a, const T b) {                                                              \
    const T r = T##_fmod(a, b);                                                                     \
    return r != 0 && (r < 0) != (b < 0) ? (T)(r + b) : r;                                           \
  }                                                                                                 \
  FN T T##_pow(const T a, u64 e, const i32 negative) {                                              \
    if (negative) return a == 1 ? 1 : SIGNED && a == (T)-1 ? (e & 1 ? (T)-1 : (T)1) : 0;            \
    U r = 1, x = (U)a;                                                                              \
    for (; e != 0; e >>= 1) {                                                                       \
      if (e & 1) r *= x;                                                                            \
      x *= x;                                                                                       \
    }                                                                                               \
    return (T)r;                                                                                    \
  }                                                                                                 \
  FN T T##_shl(const T a, const T b) { return (u64)b >= BITS ? 0 : (T)((U)a << (i32)b); }           \
  FN T T##_shr(const T a, const T b) { return (u64)b < BITS ? (T)(a >> (i32)b) : SIGNED && a < 0 ? (T)-1 : (T)0; }

#ifdef GP_FP64
/* double to float, rounded to odd: rounding the result once more, to half, is as good as rounding once. */
FN float to_odd(const double x) {
  const float f = (float)x;
  if ((double)f == x || x != x) return f;
  const i32 away = fabs((double)f) > fabs(x);
  return AS_F32((AS_I32(f) - away) | 1);
}
#endif
