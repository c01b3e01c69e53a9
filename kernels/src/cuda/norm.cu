// rms_norm:     out[t, :] = x[t, :] / sqrt(mean(x[t, :]²) + eps) * w                            one block per row t
// add_rms_norm: residual[t, :] += x[t, :], then out = rms_norm(residual)
// layer_norm:   out[t, :] = (x[t, :] - mean) / sqrt(variance + eps) * w + b
// layer_norm_heads: the same of rows [T · heads, D], where row r has row r % heads of w and b [heads, D]; f32
// pack_rms_norm, pack_add_rms_norm: the same in f32, and out rounded and packed (tokens.cuh) beside it, for linear layers
// pack_layer_norm: rounded and packed alone
// x, residual, out [T, D] T · w, b [D] f32 · sums in f32 · N = 4 where D % 4 == 0, else 1; any T > 0
// moves 2·size·T·D bytes (add_rms_norm: 4·size); not measured: no GPU was available
#include "norm.cuh"

template <class T, int N>
__global__ void __launch_bounds__(THREADS) rms_norm(In<T> x, In<float> w, float eps, int width, Out<T> out) {
    SHARED(float, scratch, WARPS);
    long long start = (long long)blockIdx.x * width;
    float mean = sum_of_squares<N>(x + start, 0.0f, width, scratch) / (float)width;
    scale_row<N>(x + start, 0.0f, 1.0f / sqrtf(mean + eps), w, nullptr, width, out + start);
}

template <class T, int N>
__global__ void __launch_bounds__(THREADS)
    add_rms_norm(Out<T> residual, In<T> x, In<float> w, float eps, int width, Out<T> out) {
    SHARED(float, scratch, WARPS);
    long long start = (long long)blockIdx.x * width;
    float mean = add_to_stream<N>(residual + start, x + start, width, scratch);
    // Each thread reads back what it wrote itself.
    scale_row<N>(Ptr<const T>(residual + start), 0.0f, 1.0f / sqrtf(mean + eps), w, nullptr, width, out + start);
}

// grid of both: tokens, filled up
template <class P, int N>
__global__ void __launch_bounds__(THREADS, 4)
    pack_rms_norm(In<float> x, In<float> w, float eps, int rows, int width, Out<float> out, Out<P> packed) {
    SHARED(float, scratch, WARPS);
    PackedRow<P, N> row{packed, (int)blockIdx.x, packed_columns(width)};
    bool there = row.token < rows;
    if (there) {
        long long start = (long long)row.token * width;
        float mean = sum_of_squares<N>(x + start, 0.0f, width, scratch) / (float)width;
        scale_both(x + start, 1.0f / sqrtf(mean + eps), w, width, out + start, row);
    }
    row.fill_up(there ? width : 0);
}

template <class P, int N>
__global__ void __launch_bounds__(THREADS, 4)
    pack_add_rms_norm(Out<float> residual, In<float> x, In<float> w, float eps, int rows, int width, Out<float> out, Out<P> packed) {
    SHARED(float, scratch, WARPS);
    PackedRow<P, N> row{packed, (int)blockIdx.x, packed_columns(width)};
    bool there = row.token < rows;
    if (there) {
        long long start = (long long)row.token * width;
        float mean = add_to_stream<N>(residual + start, x + start, width, scratch);
        scale_both(Ptr<const float>(residual + start), 1.0f / sqrtf(mean + eps), w, width, out + start, row);
    }
    row.fill_up(there ? width : 0);
}

// Mean, and one over the deviation, of a row.
template <class T, int N>
__device__ __forceinline__ float2 moments(Ptr<const T> row, float eps, int width, Ptr<float> sums, Ptr<float> squares) {
    float sum = 0;
    for (int i = (int)threadIdx.x * N; i < width; i += THREADS * N) {
        float v[N];
        Wide<N>::load(row + i, v);
        for (int j = 0; j < N; j++) sum += v[j];
    }
    // Centred first: the difference of large squares would lose the small variance.
    float mean = block_sum<WARPS>(sum, sums) / (float)width;
    float variance = sum_of_squares<N>(row, mean, width, squares) / (float)width;
    return make_float2(mean, 1.0f / sqrtf(variance + eps));
}

template <class T, int N>
__global__ void __launch_bounds__(THREADS)
    layer_norm(In<T> x, In<float> w, In<float> b, float eps, int width, Out<T> out) {
    SHARED(float, sums, WARPS);
    SHARED(float, squares, WARPS);
    long long start = (long long)blockIdx.x * width;
    float2 m = moments<T, N>(x + start, eps, width, sums, squares);
    scale_row<N>(x + start, m.x, m.y, w, b, width, out + start);
}

template <class T, int N>
__global__ void __launch_bounds__(THREADS)
    layer_norm_heads(In<T> x, In<float> w, In<float> b, float eps, int heads, int width, Out<T> out) {
    SHARED(float, sums, WARPS);
    SHARED(float, squares, WARPS);
    long long start = (long long)blockIdx.x * width;
    int own = (int)blockIdx.x % heads * width;
    float2 m = moments<T, N>(x + start, eps, width, sums, squares);
    scale_row<N>(x + start, m.x, m.y, w + own, b + own, width, out + start);
}

// layer_norm, rounded and packed (tokens.cuh). grid: tokens, filled up
template <class P, int N>
__global__ void __launch_bounds__(THREADS, 4)
    pack_layer_norm(In<float> x, In<float> w, In<float> b, float eps, int rows, int width, Out<P> packed) {
    SHARED(float, sums, WARPS);
    SHARED(float, squares, WARPS);
    PackedRow<P, N> row{packed, (int)blockIdx.x, packed_columns(width)};
    bool there = row.token < rows;
    if (there) {
        Ptr<const float> from = x + (long long)row.token * width;
        float2 m = moments<float, N>(from, eps, width, sums, squares);
        scale_row_to<N>(from, m.x, m.y, w, b, width, [&](int i, const float (&v)[N]) { row.store(i, v); });
    }
    row.fill_up(there ? width : 0);
}
