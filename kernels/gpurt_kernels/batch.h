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
  return (float16)(epilogue8(v.lo, e EPILOGUE_PASS), epilogue8(v.hi, e + 8 EPILOGUE_PASS));
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
