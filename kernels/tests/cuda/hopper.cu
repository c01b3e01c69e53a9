// The named instructions of sm_90a: products of a warpgroup against a plain sum, and a pipeline of bulk copies. Macros switch bugs on.
#include "common.cuh"
#include "hopper.cuh"

#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int K = 64;

template <int N> struct Wgmma;
#define WGMMA(n)                                                                                                     \
    template <> struct Wgmma<n> {                                                                                    \
        static __device__ void add(float (&d)[n / 2], const unsigned (&a)[4], unsigned long long b, bf16) {          \
            wgmma_m64n##n##k16_bf16(d, a, b);                                                                        \
        }                                                                                                            \
        static __device__ void add(float (&d)[n / 2], const unsigned (&a)[4], unsigned long long b, f16) {           \
            wgmma_m64n##n##k16_f16(d, a, b);                                                                         \
        }                                                                                                            \
    };
WGMMA(8)
WGMMA(16)
WGMMA(32)
WGMMA(64)
WGMMA(128)
WGMMA(192)

// a [64, K], b [N, K], out [64, N] f32; one block of 128 threads. out = 1 + a · bᵀ
template <class T, int N, bool SWIZZLE> __global__ void __launch_bounds__(128) multiply(In<T> a, In<T> b, Out<float> out) {
    DYNAMIC_SHARED(T, tile);
    int thread = (int)threadIdx.x, lane = lane_id(), group = lane / 4, pair = lane % 4 * 2;
    for (int i = thread; i < N * K; i += 128) {
        int n = i / K, k = i % K;
        int place = SWIZZLE ? n * 64 + (k / 8 ^ n % 8) * 8 + k % 8 : (n / 8 * (K / 8) + k / 8) * 64 + n % 8 * 8 + k % 8;
#ifdef HOLE
        if (n == N - 1 && k == K - 1) continue;
#endif
        T v = b[i];
        tile[place] = v;
    }
    fence_async_proxy();
    __syncthreads();
    float d[N / 2];
    for (int i = 0; i < N / 2; i++) d[i] = 1.0f;
    unsigned fragment[K / 16][4];
    for (int step = 0; step < K / 16; step++)
        for (int r = 0; r < 4; r++) {
            int row = warp_id() * 16 + group + r % 2 * 8, k = step * 16 + pair + r / 2 * 8;
            fragment[step][r] = load_vec<unsigned>(a + (row * K + k));
        }
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < K / 16; step++) {
        Ptr<T> at = tile + (SWIZZLE ? step * 16 : step * 2 * 64);
        Wgmma<N>::add(d, fragment[step], wgmma_descriptor(at, 128, K / 8 * 128, SWIZZLE), T{});
    }
    wgmma_commit();
#ifdef NO_WAIT
    for (int i = 0; i < N / 2; i++) out[i * 128 + thread] = d[i];
#endif
    wgmma_wait<0>();
    for (int i = 0; i < N / 2; i++) {
        int row = warp_id() * 16 + group + i / 2 % 2 * 8, column = pair + i % 2 + i / 4 * 8;
        out[row * N + column] = d[i];
    }
}

constexpr int TILE = 64;
constexpr int STAGES = 2;

// x [tiles, 64] f32; out [64]: the sum of the tiles. Warp 0 copies, warps 1 and 2 add.
__global__ void __launch_bounds__(96) pipeline(In<float> x, int tiles, Out<float> out) {
    SHARED(float, stages, STAGES * TILE);
    SHARED(unsigned long long, full, STAGES);
    SHARED(unsigned long long, empty, STAGES);
    int thread = (int)threadIdx.x;
    if (thread == 0) {
        for (int i = 0; i < STAGES; i++) {
#ifndef NOT_INITIALISED
            mbarrier_init(full + i, 1);
#endif
            mbarrier_init(empty + i, 64);
        }
        mbarrier_init_fence();
    }
    __syncthreads();
    if (thread == 0) {
        for (int t = 0; t < tiles; t++) {
            int stage = t % STAGES;
#ifndef NO_EMPTY_WAIT
            mbarrier_wait(empty + stage, (t / STAGES & 1) ^ 1);
#endif
#ifdef TOO_MANY_BYTES
            mbarrier_arrive_expect(full + stage, TILE * 4 + 16);
#else
            mbarrier_arrive_expect(full + stage, TILE * 4);
#endif
            bulk_copy(stages + stage * TILE, x + t * TILE, TILE * 4, full + stage);
        }
    } else if (thread >= 32) {
        float sum = 0;
        for (int t = 0; t < tiles; t++) {
            int stage = t % STAGES;
#ifdef WRONG_PARITY
            mbarrier_wait(full + stage, (t / STAGES & 1) ^ 1);
#else
            mbarrier_wait(full + stage, t / STAGES & 1);
#endif
            sum += stages[stage * TILE + thread - 32];
            mbarrier_arrive(empty + stage);
        }
        out[thread - 32] = sum;
    }
}

#endif
