// weighted_sums: out[t] = Σ_k x[t, k] · w[k], one block of 64 threads for each row, K in steps of 128 through shared memory.
// A small kernel with every ingredient that may go wrong. Macros switch one bug on.
#include "common.cuh"

constexpr int THREADS = 64;
constexpr int STEP = 128;

__global__ void weighted_sums(In<float> x, In<float> w, int k, Out<float> scratch, Out<float> out) {
    SHARED(float, tile, 2 * STEP);
    SHARED(float, partial, 2);
    int thread = (int)threadIdx.x;
    Ptr<const float> row = x + (long long)blockIdx.x * k;
    auto copy = [&](int step) {
        int at = step * STEP + thread * 4;
        if (thread < STEP / 4) {
#ifdef UNMASKED_TAIL
            int left = 4;
#else
            int left = at < k ? (k - at < 4 ? k - at : 4) : 0;
#endif
#ifdef MISALIGNED
            cp_async16(tile + (step % 2 * STEP + thread * 4 + 1), row + (left ? at : 0), left * 4);
#else
            cp_async16(tile + (step % 2 * STEP + thread * 4), row + (left ? at : 0), left * 4);
#endif
        }
        cp_async_commit();
    };
    int steps = (k + STEP - 1) / STEP;
    float sum = 0;
    copy(0);
    for (int step = 0; step < steps; step++) {
        if (step + 1 < steps) copy(step + 1); else cp_async_commit();
#ifdef MISSING_WAIT
        cp_async_wait<2>();
#else
        cp_async_wait<1>();
#endif
#ifdef DIVERGENT_BARRIER
        if (thread < 32) {
            __syncthreads();
        } else {
            __syncthreads();
        }
#elif !defined(DROPPED_BARRIER)
        __syncthreads();
#endif
        for (int i = thread; i < STEP; i += THREADS) {
            int at = step * STEP + i;
#ifdef OFF_BY_ONE
            if (at > k) continue;
#else
            if (at >= k) continue;
#endif
            sum = fmaf(tile[step % 2 * STEP + i], w[at], sum);
        }
#ifndef NO_SECOND_BARRIER
        __syncthreads();
#endif
    }
#ifdef EARLY_EXIT
    if (thread >= 60) return;
#endif
#ifdef DIVERGENT_WARP
    if (lane_id() < 16)
        sum += __shfl_xor_sync(~0u, sum, 16);
    else
        sum += __shfl_xor_sync(~0u, sum, 16);
    for (int step = 8; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
#elif defined(WRONG_LANE)
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step == 4 ? 8 : step);
#else
    sum = warp_sum(sum);
#endif
#ifdef WRONG_MASK
    sum += __shfl_xor_sync(0xffffu, 0.0f, 1);
#endif
    if (lane_id() == 0) partial[warp_id()] = sum;
#ifdef NO_LAST_BARRIER
    __syncwarp();
#else
    __syncthreads();
#endif
#ifdef NULL_POINTER
    Ptr<float> nothing = nullptr;
    nothing[0] = sum;
#endif
#ifdef UNWRITTEN_DEVICE_MEMORY
    sum += scratch[thread];
#endif
#ifdef DEADLOCK
    if (thread < 32) barrier_sync(3, 64);
#endif
    if (thread == 0) out[blockIdx.x] = partial[0] + partial[1];
}
