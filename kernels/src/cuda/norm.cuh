// One row of a norm by a block of 256 threads: the sum, and the row scaled (norm.cu, latents.cu, moe.cu), and where it goes rounded and packed.
#pragma once
#include "tokens.cuh"

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

// A token's row as linear layers take it (tokens.cuh), by a block: N of them from place i on.
template <class P, int N> struct PackedRow {
    Ptr<P> packed;
    int token, columns;

    __device__ __forceinline__ void store(int i, const float (&v)[N]) const {
        Wide<N>::store(packed + (packed_place(token, i / 8, columns) + i % 8), v);
    }
    // Zeros from place `first` on.
    __device__ __forceinline__ void fill_up(int first) const {
        const float zeros[N] = {};
        for (int i = first + (int)threadIdx.x * N; i < columns * 8; i += THREADS * N) store(i, zeros);
    }
};

// A row to both places.
template <class P, int N>
__device__ __forceinline__ void scale_both(Ptr<const float> row, float factor, Ptr<const float> w, int width, Ptr<float> out,
                                           const PackedRow<P, N>& packed) {
    scale_row_to<N>(row, 0.0f, factor, w, nullptr, width, [&](int i, const float (&v)[N]) {
        Wide<N>::store(out + i, v);
        packed.store(i, v);
    });
}

// x added to a row of the stream; the mean of its squares.
template <int N, class T>
__device__ __forceinline__ float add_to_stream(Ptr<T> stream, Ptr<const T> x, int width, Ptr<float> scratch) {
    float sum = 0;
    for (int i = (int)threadIdx.x * N; i < width; i += THREADS * N) {
        float v[N], r[N];
        Wide<N>::load(x + i, v);
        Wide<N>::load(Ptr<const T>(stream + i), r);
        for (int j = 0; j < N; j++) r[j] += v[j];
        Wide<N>::store(stream + i, r);
        // What was stored, not what was computed: the next layer sees the rounded sum.
        Wide<N>::load(Ptr<const T>(stream + i), r);
        for (int j = 0; j < N; j++) sum = fmaf(r[j], r[j], sum);
    }
    return block_sum<WARPS>(sum, scratch) / (float)width;
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
