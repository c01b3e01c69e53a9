// What blocks of a cluster do with each other's shared memory, each instruction by itself, and a pipeline whose copies are shared by all
// of them. A parameter switches bugs on.
#include "common.cuh"
#include "hopper.cuh"

#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

enum Bug {
    NONE,
    TWO_ARRIVALS,
    NO_ARRIVAL,
    NO_WAIT,
    NOT_TOLD,
    NOT_EXPECTED,
    OWN_READERS_ALONE,
    NO_FENCE,
    NO_FIRST_MEETING,
    NO_EMPTY_WAIT,
    OWN_BYTES_ALONE,
    WRONG_MASK,
    NOT_TO_ALL,
    WRONG_SHARE,
    NO_FULL_WAIT,
    LEAVES_EARLY,
    NO_LAST_MEETING,
};

__device__ __forceinline__ void cluster_sync() {
    cluster_arrive();
    cluster_wait();
}
__device__ __forceinline__ int block_number() { return (int)(blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z)); }

// out [blocks, 2]: rank and size, by the block's place in the grid; one thread
__global__ void ranks(Out<int> out) {
    out[block_number() * 2] = (int)cluster_rank();
    out[block_number() * 2 + 1] = (int)cluster_size();
}

// x [blocks]; out [blocks]: the sum over the cluster, after all have written; 40 threads, of which some exit early
__global__ void meeting(In<int> x, int bug, Out<int> made, Out<int> out) {
    int size = (int)cluster_size(), first = block_number() / size * size;
    if (threadIdx.x >= 35) return;
    if (threadIdx.x == 0) made[block_number()] = x[block_number()];
    if (bug == TWO_ARRIVALS) cluster_arrive();
    if (bug != NO_ARRIVAL) cluster_arrive();
    if (bug != NO_WAIT) cluster_wait();
    if (threadIdx.x == 0) {
        int sum = 0;
        for (int i = 0; i < size; i++) sum += made[first + i];
        out[block_number()] = sum;
    }
    // Another meeting: phases do not mix.
    if (bug != NO_WAIT) cluster_sync();
}

// Each block tells `rank + step`, modulo the size, that what it wrote is there. x, out [blocks]; one thread
__global__ void ring(In<int> x, int bug, int step, Out<int> made, Out<int> out) {
    SHARED(unsigned long long, told, 2);
    int size = (int)cluster_size(), rank = (int)cluster_rank(), first = block_number() - rank;
    mbarrier_init(told, 1);
    mbarrier_init(told + 1, 1);
    mbarrier_init_fence();
    cluster_sync();
    made[first + rank] = x[first + rank];
    if (bug != NOT_TOLD) mbarrier_arrive_at(map_to_rank(told + 1, (unsigned)((rank + step) % size)));
    mbarrier_wait_cluster(told + 1, 0);
    out[first + rank] = made[first + (rank - step % size + size) % size];
    cluster_sync();
}

constexpr int LEN = 24;

// x [24] f32; out [blocks, 24]: what each block has in its memory after block `from` sent x [4 .. 12] to the blocks of a mask: the same
// place in each, of floats that were 1 + rank. 32 threads
__global__ void multicast(In<float> x, int bug, int from, int mask, Out<float> out) {
    SHARED(float, other, 12);
    SHARED(float, memory, LEN);
    SHARED(unsigned long long, full, 1);
    int rank = (int)cluster_rank(), thread = (int)threadIdx.x;
    other[thread % 12] = 0;
    if (thread < LEN) memory[thread] = 1.0f + (float)rank;
    if (thread == 0) {
        mbarrier_init(full, 1);
        mbarrier_init_fence();
    }
    cluster_sync();
    if (thread == 0) {
        if ((mask >> rank & 1) && bug != NOT_EXPECTED) mbarrier_arrive_expect(full, 32);
        if (rank == from) bulk_copy_multicast(memory + 4, x + 4, 32, full, (unsigned short)mask);
    }
    if (mask >> rank & 1) mbarrier_wait(full, 0);
    __syncthreads();
    if (thread < LEN) out[block_number() * LEN + thread] = memory[thread];
}

constexpr int SIZE = 4;
constexpr int TILE = 64;
constexpr int STAGES = 2;

// x [tiles, 64] f32; out [blocks, 64]: the sum of the tiles, by every block. Of each tile a block copies a quarter, to all four. Warp 0
// copies, warps 1 and 2 add. In clusters of four, 96 threads.
__global__ void __launch_bounds__(96) shared_pipeline(In<float> x, int bug, int tiles, Out<float> out) {
    SHARED(float, stages, STAGES * TILE);
    SHARED(unsigned long long, full, STAGES);
    SHARED(unsigned long long, empty, STAGES);
    int thread = (int)threadIdx.x, rank = (int)cluster_rank();
    if (thread == 0) {
        for (int i = 0; i < STAGES; i++) {
            mbarrier_init(full + i, 1);
            mbarrier_init(empty + i, bug == OWN_READERS_ALONE ? 2 : 2 * SIZE);
        }
        if (bug != NO_FENCE) mbarrier_init_fence();
    }
    if (bug == NO_FIRST_MEETING) __syncthreads();
    else cluster_sync();
    if (thread == 0) {
        constexpr int SHARE = TILE / SIZE;
        for (int t = 0; t < tiles; t++) {
            int stage = t % STAGES;
            if (bug != NO_EMPTY_WAIT) mbarrier_wait_cluster(empty + stage, (t / STAGES & 1) ^ 1);
            mbarrier_arrive_expect(full + stage, (bug == OWN_BYTES_ALONE ? SHARE : TILE) * 4);
            int share = bug == WRONG_SHARE ? 0 : rank * SHARE;
            unsigned short mask = (unsigned short)((1 << (bug == WRONG_MASK ? SIZE + 1 : bug == NOT_TO_ALL ? SIZE - 1 : SIZE)) - 1);
            bulk_copy_multicast(stages + stage * TILE + share, x + t * TILE + share, SHARE * 4, full + stage, mask);
        }
    } else if (thread >= 32) {
        float sum = 0;
        for (int t = 0; t < tiles; t++) {
            int stage = t % STAGES;
            if (bug != NO_FULL_WAIT) mbarrier_wait(full + stage, t / STAGES & 1);
            sum += stages[stage * TILE + thread - 32];
            __syncwarp();
            int lane = lane_id();
            if (bug == OWN_READERS_ALONE) {
                if (lane == 0) mbarrier_arrive(empty + stage);
            } else if (lane < SIZE) {
                mbarrier_arrive_at(map_to_rank(empty + stage, (unsigned)lane));
            }
        }
        out[block_number() * TILE + thread - 32] = sum;
    }
    if (bug == LEAVES_EARLY && rank == 1) return;
    if (bug != NO_LAST_MEETING) cluster_sync();
}

#endif
