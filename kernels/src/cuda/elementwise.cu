// add:      x[i] += y[i]                                   x, y [T·D] f32
// add_gated: x[t, i] += sigmoid(gate[t]) * y[t, i]          x, y [T, D] f32 · gate [T] f32
// silu_mul: out[t, i] = silu(gate[t, i]) * up[t, i]         gate_up [T, 2I] f32: gate, then up · out [T, I] f32
// N = 4 where D % 4 == 0 (I % 4 == 0), else 1 · moves 12 bytes per element; not measured: no GPU was available
#include "common.cuh"

constexpr int THREADS = 256;

// grid: blocks of THREADS · N elements
template <int N> __global__ void __launch_bounds__(THREADS) add(Out<float> x, In<float> y, long long len) {
    long long i = ((long long)blockIdx.x * THREADS + threadIdx.x) * N;
    if (i >= len) return;
    float a[N], b[N];
    Wide<N>::load(Ptr<const float>(x + i), a);
    Wide<N>::load(y + i, b);
    for (int j = 0; j < N; j++) a[j] += b[j];
    Wide<N>::store(x + i, a);
}

// grid: blocks of THREADS · N elements
template <int N>
__global__ void __launch_bounds__(THREADS) add_gated(Out<float> x, In<float> y, In<float> gate, int width, long long len) {
    long long i = ((long long)blockIdx.x * THREADS + threadIdx.x) * N;
    if (i >= len) return;
    float a[N], b[N], factor = sigmoid(gate[i / width]);
    Wide<N>::load(Ptr<const float>(x + i), a);
    Wide<N>::load(y + i, b);
    for (int j = 0; j < N; j++) a[j] = fmaf(factor, b[j], a[j]);
    Wide<N>::store(x + i, a);
}

// grid: blocks of THREADS · N elements of out
template <int N>
__global__ void __launch_bounds__(THREADS) silu_mul(In<float> gate_up, int inner, long long len, Out<float> out) {
    long long i = ((long long)blockIdx.x * THREADS + threadIdx.x) * N;
    if (i >= len) return;
    long long gate = i / inner * 2 * inner + i % inner;
    float a[N], b[N];
    Wide<N>::load(gate_up + gate, a);
    Wide<N>::load(gate_up + gate + inner, b);
    for (int j = 0; j < N; j++) a[j] = silu(a[j]) * b[j];
    Wide<N>::store(out + i, a);
}
