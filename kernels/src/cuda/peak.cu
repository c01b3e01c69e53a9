// What a device can do, for kernels to be compared with.
// peak_read: sums all of x, read once                      x [4N] f32 · sums [blocks · 256] f32 · moves 16·N bytes
// peak_mma:  eight independent chains of m16n8k16 a warp   out [blocks · 256] f32 · 8·rounds·4096 FLOP a warp, no memory
#include "common.cuh"

constexpr int THREADS = 256;
constexpr int CHAINS = 8;

__global__ void __launch_bounds__(THREADS) peak_read(In<float> x, long long vectors, Out<float> sums) {
    long long first = (long long)blockIdx.x * THREADS + threadIdx.x, step = (long long)gridDim.x * THREADS;
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 8
    for (long long i = first; i < vectors; i += step) {
        float4 v = load_once<float4>(x + 4 * i);
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
    sums[first] = (sum.x + sum.y) + (sum.z + sum.w);
}

__global__ void __launch_bounds__(THREADS) peak_mma(int rounds, Out<float> out) {
    // 1.0 and 2⁻⁷ in bf16: sums stay finite.
    unsigned a[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
    unsigned b = 0x3c003c00u + threadIdx.x % 2;
    float d[CHAINS][4] = {};
    for (int round = 0; round < rounds; round++)
        // Each with an operand of its own: equal chains would be computed once.
#pragma unroll
        for (int chain = 0; chain < CHAINS; chain++) Float<bf16>::mma(d[chain], a, b + chain, b);
    float sum = 0;
    for (int chain = 0; chain < CHAINS; chain++)
        for (int i = 0; i < 4; i++) sum += d[chain][i];
    out[(long long)blockIdx.x * THREADS + threadIdx.x] = sum;
}
