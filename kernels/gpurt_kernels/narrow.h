/* The float types that a kernel computes in float: bfloat16, stored as u16, and the float8 family, stored as u8. For each
   type, name_to_float gives the value of the bits, and name_bits rounds a float to the nearest value, ties to even.
   Integer arithmetic alone, so that devices without subnormal floats come to the same bits. */

/* The upper half of a float. */
FN float bf16_to_float(const u32 u) { return AS_F32(u << 16); }
FN u16 bf16_bits(const float x) {
  const u32 u = (u32)AS_I32(x);
  if ((u & 0x7fffffff) > 0x7f800000) return (u16)(u >> 16 & 0x8000 | 0x7fc0);
  return (u16)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
#ifdef GP_NARROW_VECTORS
FN float8 bf16x8_to_float(const ushort8 u) { return as_float8(convert_uint8(u) << 16); }
FN ushort8 bf16x8_bits(const float8 x) {
  const uint8 u = as_uint8(x);
  const uint8 rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
  return convert_ushort8((u & 0x7fffffff) > 0x7f800000 ? (u >> 16 & 0x8000) | 0x7fc0 : rounded);
}
#endif

/* A byte with a sign, an exponent and M bits of mantissa; the exponent's bias is BIAS. */
FN float f8_value(const u32 u, const i32 M, const i32 BIAS) {
  const i32 magnitude = (i32)(u & 0x7f), e = magnitude >> M, m = magnitude & ((1 << M) - 1);
  const float v = e == 0 ? (float)m * AS_F32((128 - BIAS - M) << 23) : AS_F32((e + 127 - BIAS) << 23 | m << (23 - M));
  return u & 0x80 ? -v : v;
}
/* Magnitudes over the code TOP become TOP, or OVER where they are not to saturate. */
FN u32 f8_code(const float x, const i32 M, const i32 BIAS, const u32 TOP, const u32 OVER, const i32 saturate) {
  const u32 u = (u32)AS_I32(x) & 0x7fffffff;
  u32 code;
  if ((i32)(u >> 23) + BIAS - 127 > 0)
    code = ((u + (1u << (22 - M)) - 1 + (u >> (23 - M) & 1)) >> (23 - M)) - ((u32)(127 - BIAS) << M);
  else
    code = (u32)rint(AS_F32(u) * AS_F32((126 + BIAS + M) << 23));
  return code <= TOP ? code : saturate ? TOP : OVER;
}
#define SIGN_8(x) ((u32)AS_I32(x) >> 24 & 0x80)
#define NAN_8(u) AS_F32((i32)(((u) & 0x80) << 24 | 0x7fc00000)) /* with the sign */

/* S.1111.111 is NaN, there is no infinity. */
FN float e4m3fn_to_float(const u32 u) { return (u & 0x7f) == 0x7f ? NAN_8(u) : f8_value(u, 3, 7); }
FN u8 e4m3fn_bits(const float x, const i32 saturate) {
  return (u8)(SIGN_8(x) | (x != x ? 0x7f : f8_code(x, 3, 7, 0x7e, 0x7f, saturate)));
}
/* As IEEE has it: exponents of ones are infinity and NaN. */
FN float e5m2_to_float(const u32 u) {
  const u32 magnitude = u & 0x7f;
  if (magnitude > 0x7c) return NAN_8(u);
  return magnitude < 0x7c ? f8_value(u, 2, 15) : u & 0x80 ? -INFINITY : INFINITY;
}
FN u8 e5m2_bits(const float x, const i32 saturate) {
  return (u8)(SIGN_8(x) | (x != x ? 0x7e : f8_code(x, 2, 15, 0x7b, 0x7c, saturate)));
}
/* Neither infinity nor minus zero, whose code is NaN. */
#define F8_UNSIGNED_ZERO(name, M, BIAS)                                                        \
  FN float name##_to_float(const u32 u) { return u == 0x80 ? NAN : f8_value(u, M, BIAS); }     \
  FN u8 name##_bits(const float x, const i32 saturate) {                                       \
    const u32 code = x != x ? 0x80 : f8_code(x, M, BIAS, 0x7f, 0x80, saturate);                \
    return (u8)(code == 0 || code == 0x80 ? code : SIGN_8(x) | code);                          \
  }
F8_UNSIGNED_ZERO(e4m3fnuz, 3, 8)
F8_UNSIGNED_ZERO(e5m2fnuz, 2, 16)

/* Four bits, all of them finite numbers; NaN becomes what ml_dtypes makes of it, a zero of the other sign. */
FN float e2m1_to_float(const u32 u) { return u & 8 ? -f8_value(u & 7, 1, 1) : f8_value(u & 7, 1, 1); }
FN u8 e2m1_bits(const float x, const i32 saturate) {
  return (u8)(x != x ? AS_I32(x) < 0 ? 0 : 8 : SIGN_8(x) >> 4 | f8_code(x, 1, 1, 7, 7, saturate));
}
/* Powers of two from 2^-127 on, without sign; 255 is NaN. Flags: 1 to saturate, 2 to round to the nearest, 4 down. */
FN float e8m0_to_float(const u32 u) { return u == 255 ? NAN : u == 0 ? AS_F32(0x400000) : AS_F32((i32)u << 23); }
FN u8 e8m0_bits(const float x, const i32 flags) {
  const u32 u = (u32)AS_I32(x) & 0x7fffffff;
  if (u > 0x7f800000) return 255;
  if (u == 0 || u == 0x7f800000) return (u8)(flags & 1 ? u >> 23 & 254 : 255);
  /* Below 2^-126 the mantissa of a float is twice what an exponent of 0 says. */
  i32 code = (i32)(u >> 23);
  u32 m = u & 0x7fffff;
  if (code == 0) {
    for (; m < 0x400000; m <<= 1) code--;
    m = (m & 0x3fffff) << 1;
  }
  if (flags & 2 ? m >= 0x400000 : !(flags & 4) && m > 0) code++;
  return (u8)(code < 0 ? (flags & 1 ? 0 : 255) : code > 254 ? (flags & 1 ? 254 : 255) : code);
}
