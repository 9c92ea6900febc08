/* Vectors of 16 floats anywhere in memory, for the CPU class in OpenCL. An access through a packed struct is one
   instruction, where vload16 is a call on PoCL. */
struct __attribute__((packed)) unaligned16 {
  float16 v;
};
#define LOAD16(p) (((const GLOBAL struct unaligned16 *)(p))->v)
#define STORE16(p, x) (((GLOBAL struct unaligned16 *)(p))->v = (x))
struct __attribute__((packed)) unaligned8 {
  float8 v;
};
#define STORE8(p, x) (((GLOBAL struct unaligned8 *)(p))->v = (x))
