/* Up to three batch levels of a product: sizes of the inner two, and for each tensor a stride (elements) per level. */
#define BATCH_STRIDES(x) const i64 x##_s2, const i64 x##_s1, const i64 x##_s0
#define BATCH_SIZES const i32 z_first, const i32 z_n1, const i32 z_n0
#define BATCH_AT(x, z) \
  ((i64)((z) / z_n0 / z_n1) * x##_s2 + (i64)((z) / z_n0 % z_n1) * x##_s1 + (i64)((z) % z_n0) * x##_s0)

/* What an epilogue brings (see gpurt.device.epilogue): parameters of the kernel, and functions of a result's value and
   its position e in the whole tensor. A kernel keeps y_first, where y is before the batch moves it. */
#ifdef EPILOGUE
#define FINISH1(v, p) epilogue1((v), e_first + ((p) - y_first) EPILOGUE_PASS)
#ifdef GP_CPU_CLASS
FN float16 epilogue16(const float16 v, const i64 e EPILOGUE_FORMALS) {
  const float8 a = epilogue8((float8)(v.s0, v.s1, v.s2, v.s3, v.s4, v.s5, v.s6, v.s7), e EPILOGUE_PASS);
  const float8 b = epilogue8((float8)(v.s8, v.s9, v.sa, v.sb, v.sc, v.sd, v.se, v.sf), e + 8 EPILOGUE_PASS);
  return (float16)(a.s0, a.s1, a.s2, a.s3, a.s4, a.s5, a.s6, a.s7, b.s0, b.s1, b.s2, b.s3, b.s4, b.s5, b.s6, b.s7);
}
#define FINISH8(v, p) epilogue8((v), e_first + ((p) - y_first) EPILOGUE_PASS)
#define FINISH16(v, p) epilogue16((v), e_first + ((p) - y_first) EPILOGUE_PASS)
#endif
#else
#define EPILOGUE_PARAMS
#define EPILOGUE_OPEN
#define FINISH1(v, p) (v)
#define FINISH8(v, p) (v)
#define FINISH16(v, p) (v)
#endif
