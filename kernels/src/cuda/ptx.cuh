// Every instruction that C++ has no name for, behind a function. Kernels contain no asm and no shared-memory addresses: the
// emulator has the same functions for the CPU (emulator/ptx.h), and each is tested there against its definition in the PTX ISA.
//
// Fragments of mma.m16n8k16, lane l, g = l / 4, p = l % 4 * 2, two 16-bit values in a register, the lower index lower:
//   A [16, 16]  a[0] = (g, p), (g, p + 1)   a[1]: row g + 8   a[2]: columns + 8   a[3]: both
//   B [16, 8]   b0 = (p, g), (p + 1, g)     b1: rows + 8
//   D [16, 8]   d[0], d[1] = (g, p), (g, p + 1)   d[2], d[3]: row g + 8
#pragma once
#ifndef __CUDACC__
#include "ptx.h"
#else

__device__ __forceinline__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

// ---- conversions, to nearest even

__device__ __forceinline__ unsigned short bf16_from_float(float v) {
    unsigned short r;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(v));
    return r;
}
__device__ __forceinline__ float bf16_to_float(unsigned short v) { return __uint_as_float((unsigned)v << 16); }
__device__ __forceinline__ unsigned short f16_from_float(float v) {
    unsigned short r;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v));
    return r;
}
__device__ __forceinline__ float f16_to_float(unsigned short v) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v));
    return r;
}
__device__ __forceinline__ unsigned pack_bf16(float lo, float hi) {
    unsigned r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}
__device__ __forceinline__ unsigned pack_f16(float lo, float hi) {
    unsigned r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}
// Two sums of bf16 in one register, to nearest even. sm_80 has no add of bf16: a · 1 + b is the same.
__device__ __forceinline__ unsigned add_bf16x2(unsigned a, unsigned b) {
    unsigned r;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(0x3f803f80u), "r"(b));
    return r;
}
// 2 to the power v, within 2 ulp; exact for whole numbers.
__device__ __forceinline__ float fast_exp2(float v) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}

// ---- asynchronous copies from global to shared memory

// 16 bytes, both addresses multiples of 16; of the source only the first `valid` are read, the rest becomes zero.
__device__ __forceinline__ void cp_async16(void* dst, const void* src, unsigned valid = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(dst)), "l"(src), "r"(valid) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most N of this thread's groups are under way.
template <int N> __device__ __forceinline__ void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// ---- matrices

// 8 x 8 matrices of 16-bit values: lanes 8i .. 8i + 7 give the rows of matrix i; r[i] gets (l / 4, l % 4 * 2) and the next, or
// with _trans the same of the transposed matrix.
#define PTX_LDMATRIX_1(suffix, shape)                                                                                        \
    __device__ __forceinline__ void ldmatrix_##suffix(unsigned(&r)[1], const void* row) {                                    \
        asm volatile("ldmatrix.sync.aligned.m8n8." shape ".shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(shared_address(row)) : "memory"); \
    }
#define PTX_LDMATRIX_2(suffix, shape)                                                                                        \
    __device__ __forceinline__ void ldmatrix_##suffix(unsigned(&r)[2], const void* row) {                                    \
        asm volatile("ldmatrix.sync.aligned.m8n8." shape ".shared.b16 {%0, %1}, [%2];"                                       \
                     : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");                                        \
    }
#define PTX_LDMATRIX_4(suffix, shape)                                                                                        \
    __device__ __forceinline__ void ldmatrix_##suffix(unsigned(&r)[4], const void* row) {                                    \
        asm volatile("ldmatrix.sync.aligned.m8n8." shape ".shared.b16 {%0, %1, %2, %3}, [%4];"                               \
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");                \
    }
PTX_LDMATRIX_1(x1, "x1")
PTX_LDMATRIX_1(x1_trans, "x1.trans")
PTX_LDMATRIX_2(x2, "x2")
PTX_LDMATRIX_2(x2_trans, "x2.trans")
PTX_LDMATRIX_4(x4, "x4")
PTX_LDMATRIX_4(x4_trans, "x4.trans")

// D += A · B with sums in f32.
#define PTX_MMA_16816(type)                                                                                                  \
    __device__ __forceinline__ void mma_m16n8k16_##type(float(&d)[4], const unsigned(&a)[4], unsigned b0, unsigned b1) {     \
        asm("mma.sync.aligned.m16n8k16.row.col.f32." #type "." #type ".f32 "                                        \
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                       \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                        \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                        \
    }
PTX_MMA_16816(bf16)
PTX_MMA_16816(f16)

// ---- barriers of some threads of a block: whole warps; barrier 0 is that of __syncthreads

__device__ __forceinline__ void barrier_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- programmatic dependent launch: the next kernel begins before this one ends

__device__ __forceinline__ void griddepcontrol_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void griddepcontrol_launch_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#endif
