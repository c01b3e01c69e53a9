// What every kernel uses: types, checked pointers, shared memory, vector access, reductions, random numbers.
//
// In<T>, Out<T>  parameters that point to device memory; Ptr<T> the same inside functions, and to shared memory
// SHARED(T, name, n), DYNAMIC_SHARED(T, name)  shared memory
//
// On a GPU these are plain pointers. In the emulator they know their bounds and which bytes were written, so write `T v = p[i]`,
// not `auto v`, and cast with `cast<U>(p)`. Nothing is contracted (--fmad=false): write fmaf where it is meant.
#pragma once
#include "ptx.cuh"

#ifdef __CUDACC__
template <class T> using In = const T* __restrict__;
template <class T> using Out = T* __restrict__;
template <class T> using Ptr = T*;
#define SHARED(T, name, count)                         \
    __shared__ __align__(128) T name##_memory[count]; \
    Ptr<T> name = name##_memory
#define DYNAMIC_SHARED(T, name)                                               \
    extern __shared__ __align__(1024) unsigned char dynamic_shared_memory[]; \
    Ptr<T> name = reinterpret_cast<T*>(dynamic_shared_memory)
template <class U, class T> __device__ __forceinline__ U* cast(T* p) { return reinterpret_cast<U*>(p); }
// One aligned access of sizeof(V) bytes, in elements from p on.
template <class V, class T> __device__ __forceinline__ V load_vec(const T* p) { return *reinterpret_cast<const V*>(p); }
template <class V, class T> __device__ __forceinline__ void store_vec(T* p, V v) { *reinterpret_cast<V*>(p) = v; }
// As load_vec, from memory that no thread writes during the launch and that is used once.
template <class V, class T> __device__ __forceinline__ V load_once(const T* p) { return __ldcs(reinterpret_cast<const V*>(p)); }
#else
template <class T> using In = emu::Checked<const T>;
template <class T> using Out = emu::Checked<T>;
template <class T> using Ptr = emu::Checked<T>;
#define SHARED(T, name, count)        \
    static const char name##_key = 0; \
    Ptr<T> name = emu::shared<T>(&name##_key, count, "shared " #name, {__FILE__, __LINE__})
#define DYNAMIC_SHARED(T, name) Ptr<T> name = emu::dynamic_shared<T>()
namespace emu {
template <class T> Checked<T> shared(const void* key, uint64_t count, const char* name, Site site) {
    const Region* region = emu_shared(key, count * sizeof(T), name, site);
    return {(T*)region->start, region};
}
template <class T> Checked<T> dynamic_shared() {
    const Region* region = emu_dynamic_shared();
    return {(T*)region->start, region};
}
}  // namespace emu
template <class U, class T> emu::Checked<U> cast(emu::Checked<T> p) { return {(U*)p.at, p.region}; }
template <class V, class T> V load_vec(emu::Checked<T> p, EMU_SITE) {
    V v;
    memcpy(&v, (const void*)p.checked(sizeof(V), alignof(V), false, {file, line}), sizeof(V));
    return v;
}
template <class V, class T> void store_vec(emu::Checked<T> p, V v, EMU_SITE) {
    memcpy((void*)p.checked(sizeof(V), alignof(V), true, {file, line}), &v, sizeof(V));
}
template <class V, class T> V load_once(emu::Checked<T> p, EMU_SITE) { return load_vec<V>(p, file, line); }
#endif

// ---- floats of 16 bits: bits only, all arithmetic is in f32

struct __align__(2) bf16 {
    unsigned short bits;
};
struct __align__(2) f16 {
    unsigned short bits;
};

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(bf16 v) { return bf16_to_float(v.bits); }
__device__ __forceinline__ float to_float(f16 v) { return f16_to_float(v.bits); }

template <class T> struct Float;
template <> struct Float<float> {
    static __device__ __forceinline__ float from(float v) { return v; }
};
template <> struct Float<bf16> {
    static __device__ __forceinline__ bf16 from(float v) { return bf16{bf16_from_float(v)}; }
    // Two neighbours as tensor cores take them.
    static __device__ __forceinline__ unsigned pack(float lo, float hi) { return pack_bf16(lo, hi); }
    static __device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
        mma_m16n8k16_bf16(d, a, b0, b1);
    }
};
template <> struct Float<f16> {
    static __device__ __forceinline__ f16 from(float v) { return f16{f16_from_float(v)}; }
    static __device__ __forceinline__ unsigned pack(float lo, float hi) { return pack_f16(lo, hi); }
    static __device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
        mma_m16n8k16_f16(d, a, b0, b1);
    }
};

// N neighbours, widened, in one access: N is 1, 2 or 4 and the address a multiple of N elements.
template <int N> struct Wide;
template <> struct Wide<1> {
    template <class T> static __device__ __forceinline__ void load(Ptr<const T> p, float (&v)[1]) {
        T a = p[0];
        v[0] = to_float(a);
    }
    template <class T> static __device__ __forceinline__ void store(Ptr<T> p, const float (&v)[1]) { p[0] = Float<T>::from(v[0]); }
};
template <> struct Wide<4> {
    static __device__ __forceinline__ void load(Ptr<const float> p, float (&v)[4]) {
        float4 a = load_vec<float4>(p);
        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
    }
    template <class T> static __device__ __forceinline__ void load(Ptr<const T> p, float (&v)[4]) {
        uint2 a = load_vec<uint2>(p);
        v[0] = to_float(T{(unsigned short)a.x}), v[1] = to_float(T{(unsigned short)(a.x >> 16)});
        v[2] = to_float(T{(unsigned short)a.y}), v[3] = to_float(T{(unsigned short)(a.y >> 16)});
    }
    static __device__ __forceinline__ void store(Ptr<float> p, const float (&v)[4]) {
        store_vec(p, make_float4(v[0], v[1], v[2], v[3]));
    }
    template <class T> static __device__ __forceinline__ void store(Ptr<T> p, const float (&v)[4]) {
        store_vec(p, make_uint2(Float<T>::pack(v[0], v[1]), Float<T>::pack(v[2], v[3])));
    }
};

// ---- sums over a warp and a block, in an order fixed by the number of lanes

__device__ __forceinline__ int lane_id() { return (int)(threadIdx.x % 32); }
__device__ __forceinline__ int warp_id() { return (int)(threadIdx.x / 32); }

__device__ __forceinline__ float warp_sum(float v) {
    for (int step = 16; step; step /= 2) v += __shfl_xor_sync(~0u, v, step);
    return v;
}
__device__ __forceinline__ float warp_max(float v) {
    for (int step = 16; step; step /= 2) v = fmaxf(v, __shfl_xor_sync(~0u, v, step));
    return v;
}

// The sum over all WARPS warps of a one-dimensional block, in every thread. `scratch`: WARPS floats of shared memory, free for
// other use after the next barrier.
template <int WARPS> __device__ __forceinline__ float block_sum(float v, Ptr<float> scratch) {
    v = warp_sum(v);
    if (lane_id() == 0) scratch[warp_id()] = v;
    __syncthreads();
    float total = scratch[0];
    for (int w = 1; w < WARPS; w++) total += scratch[w];
    return total;
}
template <int WARPS> __device__ __forceinline__ float block_max(float v, Ptr<float> scratch) {
    v = warp_max(v);
    if (lane_id() == 0) scratch[warp_id()] = v;
    __syncthreads();
    float total = scratch[0];
    for (int w = 1; w < WARPS; w++) total = fmaxf(total, scratch[w]);
    return total;
}

// ---- functions that more than one kernel needs

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }
__device__ __forceinline__ float sigmoid(float v) { return 1.0f / (1.0f + expf(-v)); }
__device__ __forceinline__ float silu(float v) { return v / (1.0f + expf(-v)); }

// ---- Philox 4x32-10, as models/src/sampler/philox.rs has it

__device__ __forceinline__ uint4 philox(uint4 counter, uint2 key) {
    for (int round = 0; round < 10; round++) {
        unsigned a_hi = __umulhi(0xd2511f53u, counter.x), a_lo = 0xd2511f53u * counter.x;
        unsigned b_hi = __umulhi(0xcd9e8d57u, counter.z), b_lo = 0xcd9e8d57u * counter.z;
        counter = make_uint4(b_hi ^ counter.y ^ key.x, b_lo, a_hi ^ counter.w ^ key.y, a_lo);
        key = make_uint2(key.x + 0x9e3779b9u, key.y + 0xbb67ae85u);
    }
    return counter;
}
