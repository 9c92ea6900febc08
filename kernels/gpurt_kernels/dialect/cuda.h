/* CUDA C++ dialect of the portable kernels (NVRTC, C++17). The only file that spells CUDA; opencl.h is its twin. */
#define GP_CUDA 1
#include <cuda_fp16.h>
typedef signed char i8;
typedef unsigned char u8;
typedef short i16;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;
typedef __half half;

#define KFN(bx, by, bz) extern "C" __global__ void __launch_bounds__((bx) * (by) * (bz))
#define FN static __device__ __forceinline__
#define GLOBAL
#define LOCAL
#define CONSTANT __constant__
#define SHARED __shared__

#define TENSOR(T, x) T *x##_base, const i64 x##_at
#define INPUT(T, x) const T *__restrict__ x##_base, const i64 x##_at
#define OPEN(T, x) T *x = x##_base + x##_at
#define OPEN_IN(T, x) const T *__restrict__ x = x##_base + x##_at

#define GROUP(d) ((i32)((d) == 0 ? blockIdx.x : (d) == 1 ? blockIdx.y : blockIdx.z))
#define GROUPS(d) ((i32)((d) == 0 ? gridDim.x : (d) == 1 ? gridDim.y : gridDim.z))
#define ITEM(d) ((i32)((d) == 0 ? threadIdx.x : (d) == 1 ? threadIdx.y : threadIdx.z))
#define ITEMS(d) ((i32)((d) == 0 ? blockDim.x : (d) == 1 ? blockDim.y : blockDim.z))
#define BARRIER __syncthreads()

#define LD_HALF(p, i) __half2float((p)[i])
#define ST_HALF(p, i, v) ((p)[i] = __float2half_rn(v))
FN float round_half(const float v) { return __half2float(__float2half_rn(v)); }
#define AS_F32(u) __int_as_float(u)
#define AS_I32(f) __float_as_int(f)

/* On i32 in global memory; the value from before is returned. */
#define ATOMIC_MAX(p, v) atomicMax((p), (v))
#define ATOMIC_SWAP(p, v) atomicExch((p), (v))

/* OpenCL's names for the functions that the kernels call, for float and double alike. */
#define select_(c, a, b) ((c) ? (a) : (b))
