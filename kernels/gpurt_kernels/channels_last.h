/* Vectors of LANES channels, for the kernels over data with channels last that work on every channel by itself. The last
   vector of a row overlaps the one before it, so C is at least LANES. */
#if LANES == 16
#define VECTOR float16
#elif LANES == 8
#define VECTOR float8
#elif LANES == 4
#define VECTOR float4
#else
#define VECTOR float
#endif
struct __attribute__((packed)) any_vector {
  VECTOR v;
};
#define LOAD(p) (((const GLOBAL struct any_vector *)(p))->v)
#define FOR_CHANNELS(c, C) for (i32 c##_next = 0, c; c = c##_next + LANES > (C) ? (C) - LANES : c##_next, c##_next < (C); c##_next += LANES)

/* v is stored at p with whatever follows it. */
#if LANES == 16
#define STORE(p, value) ((GLOBAL struct any_vector *)(p))->v = FINISH16(value, p)
#elif LANES == 8
#define STORE(p, value) ((GLOBAL struct any_vector *)(p))->v = FINISH8(value, p)
#else
#define STORE(p, value)                                                                              \
  {                                                                                                  \
    const VECTOR all = value;                                                                        \
    for (i32 l = 0; l < LANES; l++) (p)[l] = FINISH1(((const float *)&all)[l], (p) + l);             \
  }
#endif

/* The taps of a window that begins at `at` which lie in 0 .. size: from .. to. */
#define TAPS_WITHIN(from, to, at, taps, step, size)                          \
  const i32 from = (at) < 0 ? (-(at) + (step) - 1) / (step) : 0;             \
  const i32 to = (at) + ((taps) - 1) * (step) < (size) ? (taps) : ((size) - (at) + (step) - 1) / (step)
