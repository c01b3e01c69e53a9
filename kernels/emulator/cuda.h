// The parts of CUDA C++ that kernels use beside the named instructions, on the CPU.
#pragma once
#include "checked.h"
#include <math.h>

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __restrict__
#define __grid_constant__
#define __align__(n) alignas(n)

#define EMU_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define threadIdx (emu::emu_self->index)
#define blockIdx (emu::emu_self->block)
#define blockDim (emu::emu_self->block_dim)
#define gridDim (emu::emu_self->grid_dim)

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// ---- barriers and warps

inline void __syncthreads(EMU_SITE) { emu::emu_barrier(0, 0, false, {file, line}); }
inline int __syncthreads_count(int p, EMU_SITE) { return emu::emu_barrier(0, 0, p != 0, {file, line}); }
inline int __syncthreads_or(int p, EMU_SITE) { return emu::emu_barrier(0, 0, p != 0, {file, line}) != 0; }
inline int __syncthreads_and(int p, EMU_SITE) { return emu::emu_barrier(0, 0, p == 0, {file, line}) == 0; }
inline void __syncwarp(unsigned mask = ~0u, EMU_SITE) {
    emu::emu_warp("__syncwarp", [](void* const*, uint32_t) {}, nullptr, mask, {file, line});
}

namespace emu {
template <class T> struct Shuffle {
    T in, out;
    int source;  // lane, or -1: its own value
};
template <class T> T shuffle(const char* name, unsigned mask, T value, int source, Site site) {
    Shuffle<T> op{value, value, source};
    emu_warp(name, [](void* const* operands, uint32_t mask) {
        for (int lane = 0; lane < 32; lane++) {
            auto* op = (Shuffle<T>*)operands[lane];
            if (!op || op->source < 0) continue;
            auto* from = (Shuffle<T>*)operands[op->source];
            // Reading from a lane that takes no part is undefined: make it visible.
            if (from) op->out = from->in; else memset(&op->out, 0xff, sizeof(T));
        }
    }, &op, mask, site);
    return op.out;
}
// Segments of `width` lanes, a power of two.
inline int in_segment(int lane, int target, int width) { return target >= 0 && target / width == lane / width && target < 32 ? target : -1; }
}  // namespace emu

template <class T> T __shfl_sync(unsigned mask, T v, int source, int width = 32, EMU_SITE) {
    int lane = emu::emu_lane();
    return emu::shuffle("__shfl_sync", mask, v, lane / width * width + (source & (width - 1)), {file, line});
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32, EMU_SITE) {
    int lane = emu::emu_lane();
    return emu::shuffle("__shfl_xor_sync", mask, v, emu::in_segment(lane, lane ^ bits, width), {file, line});
}
template <class T> T __shfl_down_sync(unsigned mask, T v, unsigned n, int width = 32, EMU_SITE) {
    int lane = emu::emu_lane();
    return emu::shuffle("__shfl_down_sync", mask, v, emu::in_segment(lane, lane + (int)n, width), {file, line});
}
template <class T> T __shfl_up_sync(unsigned mask, T v, unsigned n, int width = 32, EMU_SITE) {
    int lane = emu::emu_lane();
    return emu::shuffle("__shfl_up_sync", mask, v, emu::in_segment(lane, lane - (int)n, width), {file, line});
}

namespace emu {
template <class T> struct Vote {
    T in;
    T out;
};
// `fold(a, b)` over the lanes of the mask in order; every lane gets the result.
template <class T, class F> T fold(const char* name, unsigned mask, T value, F, Site site) {
    Vote<T> op{value, value};
    emu_warp(name, [](void* const* operands, uint32_t) {
        Vote<T>* first = nullptr;
        T total{};
        for (int lane = 0; lane < 32; lane++) {
            auto* op = (Vote<T>*)operands[lane];
            if (!op) continue;
            total = first ? F::of(total, op->in) : op->in;
            if (!first) first = op;
        }
        for (int lane = 0; lane < 32; lane++)
            if (operands[lane]) ((Vote<T>*)operands[lane])->out = total;
    }, &op, mask, site);
    return op.out;
}
struct Or { template <class T> static T of(T a, T b) { return a | b; } };
struct And { template <class T> static T of(T a, T b) { return a & b; } };
struct Xor { template <class T> static T of(T a, T b) { return a ^ b; } };
struct Add { template <class T> static T of(T a, T b) { return a + b; } };
struct Min { template <class T> static T of(T a, T b) { return a < b ? a : b; } };
struct Max { template <class T> static T of(T a, T b) { return a > b ? a : b; } };
}  // namespace emu

inline unsigned __ballot_sync(unsigned mask, int p, EMU_SITE) {
    return emu::fold("__ballot_sync", mask, p ? 1u << emu::emu_lane() : 0u, emu::Or{}, {file, line});
}
inline int __any_sync(unsigned mask, int p, EMU_SITE) { return emu::fold("__any_sync", mask, (int)(p != 0), emu::Or{}, {file, line}); }
inline int __all_sync(unsigned mask, int p, EMU_SITE) { return emu::fold("__all_sync", mask, (int)(p != 0), emu::And{}, {file, line}); }
template <class T> T __reduce_add_sync(unsigned mask, T v, EMU_SITE) { return emu::fold("__reduce_add_sync", mask, v, emu::Add{}, {file, line}); }
template <class T> T __reduce_min_sync(unsigned mask, T v, EMU_SITE) { return emu::fold("__reduce_min_sync", mask, v, emu::Min{}, {file, line}); }
template <class T> T __reduce_max_sync(unsigned mask, T v, EMU_SITE) { return emu::fold("__reduce_max_sync", mask, v, emu::Max{}, {file, line}); }
template <class T> T __reduce_or_sync(unsigned mask, T v, EMU_SITE) { return emu::fold("__reduce_or_sync", mask, v, emu::Or{}, {file, line}); }
template <class T> unsigned __match_any_sync(unsigned mask, T v, EMU_SITE) {
    emu::Shuffle<T> op{v, v, 0};
    emu::emu_warp("__match_any_sync", [](void* const* operands, uint32_t) {
        for (int lane = 0; lane < 32; lane++) {
            auto* op = (emu::Shuffle<T>*)operands[lane];
            if (!op) continue;
            unsigned same = 0;
            for (int other = 0; other < 32; other++) {
                auto* o = (emu::Shuffle<T>*)operands[other];
                if (o && o->in == op->in) same |= 1u << other;
            }
            op->source = (int)same;
        }
    }, &op, mask, {file, line});
    return (unsigned)op.source;
}

// ---- atomics: blocks run one after the other, so they are plain; each returns the old value

#define EMU_ATOMIC(name, expression)                                                                   \
    template <class T> T name(emu::Checked<T> p, typename emu::Plain<T>::type v, EMU_SITE) {            \
        T* at = p.checked(sizeof(T), alignof(T), false, {file, line});                                  \
        T old = *at;                                                                                    \
        *at = expression;                                                                               \
        return old;                                                                                     \
    }
EMU_ATOMIC(atomicAdd, old + v)
EMU_ATOMIC(atomicSub, old - v)
EMU_ATOMIC(atomicExch, v)
EMU_ATOMIC(atomicMin, old < v ? old : v)
EMU_ATOMIC(atomicMax, old > v ? old : v)
EMU_ATOMIC(atomicOr, old | v)
EMU_ATOMIC(atomicAnd, old & v)
EMU_ATOMIC(atomicXor, old ^ v)
#undef EMU_ATOMIC
template <class T> T atomicCAS(emu::Checked<T> p, typename emu::Plain<T>::type expected, typename emu::Plain<T>::type v, EMU_SITE) {
    T* at = p.checked(sizeof(T), alignof(T), false, {file, line});
    T old = *at;
    if (old == expected) *at = v;
    return old;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __nanosleep(unsigned) {}

template <class T> T __ldg(emu::Checked<const T> p, EMU_SITE) { return *p.checked(sizeof(T), alignof(T), false, {file, line}); }

// ---- bits and arithmetic

inline unsigned __float_as_uint(float v) { unsigned u; memcpy(&u, &v, 4); return u; }
inline int __float_as_int(float v) { int u; memcpy(&u, &v, 4); return u; }
inline float __uint_as_float(unsigned u) { float v; memcpy(&v, &u, 4); return v; }
inline float __int_as_float(int u) { float v; memcpy(&v, &u, 4); return v; }
// Byte i of the result is the byte of {y, x} that nibble i of the selector names; selectors with its sign bit are not used.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    uint64_t bytes = (uint64_t)y << 32 | x;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) out |= (unsigned)(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return out;
}
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __clz(int v) { return v ? __builtin_clz((unsigned)v) : 32; }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline unsigned __brev(unsigned v) {
    unsigned out = 0;
    for (int i = 0; i < 32; i++) out |= (v >> i & 1) << (31 - i);
    return out;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
inline float rsqrtf(float v) { return 1.0f / sqrtf(v); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
template <class A, class B> auto min(A a, B b) -> decltype(a + b) { return a < b ? a : b; }
template <class A, class B> auto max(A a, B b) -> decltype(a + b) { return a > b ? a : b; }
