/* OpenCL C 1.2 dialect of the portable kernels. The only file that spells OpenCL; cuda.h is its twin. */
#define GP_OPENCL 1
#ifdef GP_FP64
#pragma OPENCL EXTENSION cl_khr_fp64 : enable
#endif
typedef char i8;
typedef uchar u8;
typedef short i16;
typedef ushort u16;
typedef int i32;
typedef uint u32;
typedef long i64;
typedef ulong u64;

/* KFN(bx, by, bz) name(...) { ... }: a kernel whose groups have exactly bx * by * bz items. */
#ifndef GP_PERSISTENT
#define KFN(bx, by, bz) __kernel __attribute__((reqd_work_group_size(bx, by, bz))) void
#elif __has_attribute(min_vector_width) /* else clang cuts float16 in halves where no parameter is as wide */
#define KFN(bx, by, bz) static __attribute__((noinline, min_vector_width(512))) void
#else
#define KFN(bx, by, bz) static __attribute__((noinline)) void
#endif
#define FN static inline
#define GLOBAL __global
#define LOCAL __local
#define CONSTANT __constant
#define SHARED __local

/* A tensor parameter is a base pointer and an offset in elements: plans place values inside large blocks. */
#define TENSOR(T, x) __global T *x##_base, const i64 x##_at
#define INPUT(T, x) __global const T *restrict x##_base, const i64 x##_at
#define OPEN(T, x) __global T *x = x##_base + x##_at
#define OPEN_IN(T, x) __global const T *restrict x = x##_base + x##_at

#ifdef GP_PERSISTENT /* a function that is called for each group of one item, see gpurt.device.persistent */
#define GROUP(d) ((d) == 0 ? group_x : (d) == 1 ? group_y : group_z)
#define GROUPS(d) ((d) == 0 ? groups_x : (d) == 1 ? groups_y : groups_z)
#define ITEM(d) 0
#define ITEMS(d) 1
#else
#define GROUP(d) ((i32)get_group_id(d))
#define GROUPS(d) ((i32)get_num_groups(d))
#define ITEM(d) ((i32)get_local_id(d))
#define ITEMS(d) ((i32)get_local_size(d))
#endif
#define BARRIER barrier(CLK_LOCAL_MEM_FENCE)

#define LD_HALF(p, i) vload_half((i), (p))
#define ST_HALF(p, i, v) vstore_half_rte((v), (i), (p))
FN float round_half(const float v) {
  u16 bits;
  vstore_half_rte(v, 0, (half *)&bits);
  return vload_half(0, (const half *)&bits);
}
#define AS_F32(u) as_float(u)
#define AS_I32(f) as_int(f)

/* On i32 in global memory; the value from before is returned. */
#define ATOMIC_MAX(p, v) atomic_max((volatile __global int *)(p), (v))
#define ATOMIC_SWAP(p, v) atomic_xchg((volatile __global int *)(p), (v))
