/* Functions of reals that elementwise kernels call. The text is compiled once for each type F that a program uses:
   F is float, float8, double or double8, N(x) puts the type's prefix before a name, L(c) spells a constant in its
   precision. Single precision brings FI (integers as wide as F), AS_FI(x), AS_F(i) and the macro GP_SINGLE; eight
   lanes bring LANE, the type of one. */

/* NumPy's maximum and minimum: a NaN operand wins. */
FN F N(max)(const F a, const F b) { return ((a > b) | (a != a)) ? a : b; }
FN F N(min)(const F a, const F b) { return ((a < b) | (a != a)) ? a : b; }

FN F N(unit)(const F x) { return x < L(0.0) ? (F)L(0.0) : x > L(1.0) ? (F)L(1.0) : x; }

/* The remainder with the sign of the divisor, of zeros too. */
FN F N(mod)(const F a, const F b) {
  const F r = fmod(a, b);
  const F moved = (r < L(0.0)) != (b < L(0.0)) ? r + b : r;
  return r == L(0.0) ? copysign(r, b) : moved;
}

/* In PoCL a lane that needs the long reduction of its angle (from 125 on, and infinity) spoils the lanes beside it. */
#ifdef LANE
#define TRIGONOMETRIC(ours, builtin)                                             \
  FN F ours(const F x) {                                                         \
    if (all(fabs(x) < L(100.0))) return builtin(x);                              \
    F y;                                                                         \
    for (i32 k = 0; k < 8; k++) ((LANE *)&y)[k] = builtin(((const LANE *)&x)[k]); \
    return y;                                                                    \
  }
#else
#define TRIGONOMETRIC(ours, builtin) \
  FN F ours(const F x) { return builtin(x); }
#endif
TRIGONOMETRIC(N(sin), sin)
TRIGONOMETRIC(N(cos), cos)
TRIGONOMETRIC(N(tan), tan)
#undef TRIGONOMETRIC

#ifdef GP_SINGLE
/* Rational approximations (the minimax coefficients that Eigen uses too) over arguments clamped to where the function
   rounds to 1: a few units in the last place, and on PoCL a third of the time of the built-in erf. */
FN F N(erf)(const F a) {
  const F x = a > 4.0f ? (F)4.0f : a < -4.0f ? (F)-4.0f : a;
  const F t = x * x;
  F p = t * -2.72614225801306e-10f + 2.77068142495902e-08f;
  p = p * t - 2.10102402082508e-06f;
  p = p * t - 5.69250639462346e-05f;
  p = p * t - 7.34990630326855e-04f;
  p = p * t - 2.95459980854025e-03f;
  p = p * t - 1.60960333262415e-02f;
  F q = t * -1.45660718464996e-05f - 2.13374055278905e-04f;
  q = q * t - 1.68282697438203e-03f;
  q = q * t - 7.37332916720468e-03f;
  q = q * t - 1.42647390514189e-02f;
  return x * p / q;
}
FN F N(tanh)(const F a) {
  const F x = a > 7.90531110763549805f ? (F)7.90531110763549805f : a < -7.90531110763549805f ? (F)-7.90531110763549805f : a;
  const F t = x * x;
  F p = t * -2.76076847742355e-16f + 2.00018790482477e-13f;
  p = p * t - 8.60467152213735e-11f;
  p = p * t + 5.12229709037114e-08f;
  p = p * t + 1.48572235717979e-05f;
  p = p * t + 6.37261928875436e-04f;
  p = p * t + 4.89352455891786e-03f;
  F q = t * 1.19825839466702e-06f + 1.18534705686654e-04f;
  q = q * t + 2.26843463243900e-03f;
  q = q * t + 4.89352518554385e-03f;
  const F y = a > 8.3f ? (F)1.0f : a < -8.3f ? (F)-1.0f : x * p / q;
  return ((a < 0.0004f) & (a > -0.0004f)) ? a : y;
}

/* The nearest value that float16 has, still as F: ties to even, 65520 and above to infinity. */
FN F N(round_half)(const F x) {
  const FI magnitude = AS_FI(x) & 0x7fffffff;
  const FI sign = AS_FI(x) ^ magnitude;
  const FI normal = (magnitude + 0xfff + ((magnitude >> 13) & 1)) & ~0x1fff;
  /* Below 2^-14 halves are multiples of 2^-24, which is the last place of a float near 0.5. */
  const FI small = AS_FI((AS_F(magnitude) + 0.5f) - 0.5f);
  FI y = magnitude < 0x38800000 ? small : normal;
  y = y > 0x477fffff ? (FI)0x7f800000 : y;
  y = magnitude > 0x7f800000 ? magnitude : y;
  return AS_F(y | sign);
}
#else
FN F N(erf)(const F x) { return erf(x); }
FN F N(tanh)(const F x) { return tanh(x); }
#endif

FN F N(gelu)(const F x) { return L(0.5) * x * (L(1.0) + N(erf)(x * L(0.7071067811865476))); }
/* (1 + tanh(u)) / 2 is 1 / (1 + exp(-2 u)), which loses nothing to cancellation. */
FN F N(gelu_tanh)(const F x) {
  return x / (L(1.0) + exp(L(-1.5957691216057308) * (x + L(0.044715) * (x * x * x))));
}
FN F N(softplus)(const F x) { return (x < L(0.0) ? (F)L(0.0) : x) + log1p(exp(-fabs(x))); }

/* x * tanh(log(1 + e)) with e = exp(x) is x * n / (n + 2) with n = e * (e + 2); from 20 on the quotient is 1. */
FN F N(mish)(const F x) {
  const F e = exp(x > L(20.0) ? (F)L(20.0) : x);
  const F n = e * (e + L(2.0));
  return x * (n / (n + L(2.0)));
}
