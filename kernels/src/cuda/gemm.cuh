// What products of weights and tokens have in common (linear.cu, moe.cu). One order of sums: K is cut into RANGES ranges of whole
// 16s by its length alone; inside a range one accumulator takes the products in the order of k; the ranges are added from first
// to last.
#pragma once
#include "common.cuh"

constexpr int RANGES = 8;

__device__ __forceinline__ int tiles_per_range(int tiles) { return (tiles + RANGES - 1) / RANGES; }

template <class X> struct Pair;
template <> struct Pair<float> {
    static __device__ __forceinline__ float2 load(Ptr<const float> p) { return load_vec<float2>(p); }
};
template <> struct Pair<bf16> {
    static __device__ __forceinline__ float2 load(Ptr<const bf16> p) {
        unsigned v = load_vec<unsigned>(p);
        return make_float2(bf16_to_float((unsigned short)v), bf16_to_float((unsigned short)(v >> 16)));
    }
};

// x[k], x[k + 1], rounded and packed; zero from `end` on. k is even.
template <class X, class W> __device__ __forceinline__ unsigned load_pair(Ptr<const X> row, int k, int end, int aligned) {
    float lo = 0, hi = 0;
    if (k + 1 < end && aligned) {
        float2 v = Pair<X>::load(row + k);
        lo = v.x, hi = v.y;
    } else if (k + 1 < end) {
        X a = row[k], b = row[k + 1];
        lo = to_float(a), hi = to_float(b);
    } else if (k < end) {
        X a = row[k];
        lo = to_float(a);
    }
    return Float<W>::pack(lo, hi);
}
