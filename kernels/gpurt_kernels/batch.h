/* Up to three batch levels of a product: sizes of the inner two, and for each tensor a stride (elements) per level. */
#define BATCH_STRIDES(x) const i64 x##_s2, const i64 x##_s1, const i64 x##_s0
#define BATCH_SIZES const i32 z_first, const i32 z_n1, const i32 z_n0
#define BATCH_AT(x, z) \
  ((i64)((z) / z_n0 / z_n1) * x##_s2 + (i64)((z) / z_n0 % z_n1) * x##_s1 + (i64)((z) % z_n0) * x##_s0)
