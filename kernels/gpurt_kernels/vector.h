/* Eight elements at once, for the CPU class in OpenCL. Tensors begin at any element, so the accesses are unaligned: a
   packed struct says so and compiles to one plain load, where vload8 costs PoCL eight. */
#define VECTOR_ACCESS(T, V)                                                     \
  struct __attribute__((packed)) packed_##T {                                   \
    V v;                                                                        \
  };                                                                            \
  FN V load_##T(const GLOBAL T *p, const i32 count) {                           \
    if (count == 8) return ((const GLOBAL struct packed_##T *)p)->v;            \
    V v = (V)(0);                                                               \
    for (i32 k = 0; k < count; k++) ((T *)&v)[k] = p[k];                        \
    return v;                                                                   \
  }                                                                             \
  FN void store_##T(GLOBAL T *p, const V v, const i32 count) {                  \
    if (count == 8)                                                             \
      ((GLOBAL struct packed_##T *)p)->v = v;                                   \
    else                                                                        \
      for (i32 k = 0; k < count; k++) p[k] = ((const T *)&v)[k];                \
  }

/* float16 by integer arithmetic: PoCL converts half one element at a time. */
FN float8 half_to_float8(const ushort8 h) {
  const int8 u = convert_int8(h);
  const int8 magnitude = (u & 0x7fff) << 13;
  const int8 special = magnitude >= 0x0f800000 ? (int8)0x7f800000 : (int8)0;
  const int8 finite = as_int8(as_float8(magnitude) * 5.192296858534828e33f); /* 2^112: the exponents' biases differ */
  return as_float8((special != 0 ? special | magnitude : finite) | ((u & 0x8000) << 16));
}
FN ushort8 half_from_float8(const float8 x) {
  const int8 magnitude = as_int8(x) & 0x7fffffff;
  const int8 normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - 0x38000000) >> 13;
  const int8 small = as_int8(as_float8(magnitude) + 0.5f) - 0x3f000000;
  int8 h = magnitude < 0x38800000 ? small : normal;
  h = h > 0x7c00 ? (int8)0x7c00 : h;
  h = magnitude > 0x7f800000 ? (int8)0x7e00 : h;
  return convert_ushort8(h | ((as_int8(x) >> 16) & 0x8000));
}
