// pack_tokens:   packed[t, k] = round(x[t, k])                                 in the order of tokens.cuh, zeros where it is filled up
// pack_silu_mul: packed[t, k] = round(silu(x[t, k]) * x[t, K + k])             gate, then up
// x [T, K] ([T, 2 K]) f32 · packed T (bf16 or f16), to nearest even · N = 4 where K % 4 == 0, else 1 · any T, K > 0
// moves 6·T·K (10·T·K) bytes; not measured: no GPU was available
#include "tokens.cuh"

constexpr int THREADS = 256;

// Eight numbers of a token for each thread: load(token, k, v) gives N of them. A warp has 8 tokens and 4 columns, so that it reads and writes
// whole lines of 128 bytes.
template <class T, int N, class Load> __device__ __forceinline__ void pack(int rows, int k, Ptr<T> packed, const Load& load) {
    int lane = lane_id(), token = (int)blockIdx.x * 8 + lane / 4, column = ((int)blockIdx.y * 8 + warp_id()) * 4 + lane % 4;
    int columns = packed_columns(k);
    if (column >= columns) return;
    float v[8] = {};
#pragma unroll
    for (int i = 0; i < 8; i += N) {
        if (token >= rows || column * 8 + i >= k) continue;
        float part[N];
        load(token, column * 8 + i, part);
#pragma unroll
        for (int j = 0; j < N; j++) v[i + j] = part[j];
    }
    using F = Float<T>;
    store_vec(packed + packed_place(token, column, columns),
              make_uint4(F::pack(v[0], v[1]), F::pack(v[2], v[3]), F::pack(v[4], v[5]), F::pack(v[6], v[7])));
}

// grid of both: (tokens / 8, columns / 32), filled up
template <class T, int N>
__global__ void __launch_bounds__(THREADS) pack_tokens(In<float> x, int rows, int k, Out<T> packed) {
    pack<T, N>(rows, k, packed, [&](int token, int at, float (&v)[N]) { Wide<N>::load(x + ((long long)token * k + at), v); });
}

template <class T, int N>
__global__ void __launch_bounds__(THREADS) pack_silu_mul(In<float> x, int rows, int k, Out<T> packed) {
    pack<T, N>(rows, k, packed, [&](int token, int at, float (&v)[N]) {
        float up[N];
        Wide<N>::load(x + (2 * (long long)token * k + at), v);
        Wide<N>::load(x + ((2 * (long long)token + 1) * k + at), up);
#pragma unroll
        for (int j = 0; j < N; j++) v[j] = silu(v[j]) * up[j];
    });
}
