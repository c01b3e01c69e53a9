// rms_norm:     out[t, :] = x[t, :] / sqrt(mean(x[t, :]²) + eps) * w                            one block per row t
// add_rms_norm: residual[t, :] += x[t, :], then out = rms_norm(residual)
// layer_norm:   out[t, :] = (x[t, :] - mean) / sqrt(variance + eps) * w + b
// x, residual, out [T, D] T · w, b [D] f32 · sums in f32 · N = 4 where D % 4 == 0, else 1; any T > 0
// moves 2·size·T·D bytes (add_rms_norm: 4·size); not measured: no GPU was available
#include "common.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;

// out = (row - mean) * factor * w + b, for one row. Without b: mean is 0.
template <class T, int N>
__device__ __forceinline__ void scale_row(Ptr<const T> row, float mean, float factor, Ptr<const float> w, Ptr<const float> b,
                                          int width, Ptr<T> out) {
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
        Wide<N>::store(out + i, v);
    }
}

// Σ (row - mean)² over the block.
template <class T, int N>
__device__ __forceinline__ float sum_of_squares(Ptr<const T> row, float mean, int width, Ptr<float> scratch) {
    float sum = 0;
    for (int i = (int)threadIdx.x * N; i < width; i += THREADS * N) {
        float v[N];
        Wide<N>::load(row + i, v);
        for (int j = 0; j < N; j++) sum = fmaf(v[j] - mean, v[j] - mean, sum);
    }
    return block_sum<WARPS>(sum, scratch);
}

template <class T, int N>
__global__ void __launch_bounds__(THREADS) rms_norm(In<T> x, In<float> w, float eps, int width, Out<T> out) {
    SHARED(float, scratch, WARPS);
    long long start = (long long)blockIdx.x * width;
    float mean = sum_of_squares<T, N>(x + start, 0.0f, width, scratch) / (float)width;
    scale_row<T, N>(x + start, 0.0f, 1.0f / sqrtf(mean + eps), w, nullptr, width, out + start);
}

template <class T, int N>
__global__ void __launch_bounds__(THREADS)
    add_rms_norm(Out<T> residual, In<T> x, In<float> w, float eps, int width, Out<T> out) {
    SHARED(float, scratch, WARPS);
    long long start = (long long)blockIdx.x * width;
    float sum = 0;
    for (int i = (int)threadIdx.x * N; i < width; i += THREADS * N) {
        float v[N], r[N];
        Wide<N>::load(x + start + i, v);
        Wide<N>::load(Ptr<const T>(residual + start + i), r);
        for (int j = 0; j < N; j++) r[j] += v[j];
        Wide<N>::store(residual + start + i, r);
        // What was stored, not what was computed: the next layer sees the rounded sum.
        Wide<N>::load(Ptr<const T>(residual + start + i), r);
        for (int j = 0; j < N; j++) sum = fmaf(r[j], r[j], sum);
    }
    float mean = block_sum<WARPS>(sum, scratch) / (float)width;
    // Each thread reads back what it wrote itself.
    scale_row<T, N>(Ptr<const T>(residual + start), 0.0f, 1.0f / sqrtf(mean + eps), w, nullptr, width, out + start);
}

template <class T, int N>
__global__ void __launch_bounds__(THREADS)
    layer_norm(In<T> x, In<float> w, In<float> b, float eps, int width, Out<T> out) {
    SHARED(float, sums, WARPS);
    SHARED(float, squares, WARPS);
    long long start = (long long)blockIdx.x * width;
    float sum = 0;
    for (int i = (int)threadIdx.x * N; i < width; i += THREADS * N) {
        float v[N];
        Wide<N>::load(x + start + i, v);
        for (int j = 0; j < N; j++) sum += v[j];
    }
    // Centred first: the difference of large squares would lose the small variance.
    float mean = block_sum<WARPS>(sum, sums) / (float)width;
    float variance = sum_of_squares<T, N>(x + start, mean, width, squares) / (float)width;
    scale_row<T, N>(x + start, mean, 1.0f / sqrtf(variance + eps), w, b, width, out + start);
}
