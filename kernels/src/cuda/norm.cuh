// One row of a norm by a block of 256 threads: the sum, and the row scaled (norm.cu, latents.cu).
#pragma once
#include "common.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;

// store(i, N of them from place i on) of (row - mean) * factor * w + b, for one row. Without b: mean is 0.
template <int N, class T, class Store>
__device__ __forceinline__ void scale_row_to(Ptr<const T> row, float mean, float factor, Ptr<const float> w, Ptr<const float> b,
                                             int width, const Store& store) {
    for (int i = (int)threadIdx.x * N; i < width; i += THREADS * N) {
        float v[N], scale[N];
        Wide<N>::load(row + i, v);
        Wide<N>::load(w + i, scale);
        for (int j = 0; j < N; j++) v[j] = (v[j] - mean) * factor * scale[j];
        if (b != nullptr) {
            float shift[N];
            Wide<N>::load(b + i, shift);
            for (int j = 0; j < N; j++) v[j] += shift[j];
        }
        store(i, v);
    }
}
template <int N, class T, class O>
__device__ __forceinline__ void scale_row(Ptr<const T> row, float mean, float factor, Ptr<const float> w, Ptr<const float> b,
                                          int width, Ptr<O> out) {
    scale_row_to<N>(row, mean, factor, w, b, width, [&](int i, const float (&v)[N]) { Wide<N>::store(out + i, v); });
}

// Σ (row - mean)² over the block.
template <int N, class T>
__device__ __forceinline__ float sum_of_squares(Ptr<const T> row, float mean, int width, Ptr<float> scratch) {
    float sum = 0;
    for (int i = (int)threadIdx.x * N; i < width; i += THREADS * N) {
        float v[N];
        Wide<N>::load(row + i, v);
        for (int j = 0; j < N; j++) sum = fmaf(v[j] - mean, v[j] - mean, sum);
    }
    return block_sum<WARPS>(sum, scratch);
}
