// Products of weights and many tokens on sm_90a (linear.cu, moe.cu): wgmma, fed by bulk copies. Every sum is made as gemm.cuh says, so that
// the results are those of mma.sync if the hardware rounds both alike, which a GPU must show (docs/gpu.md).
//
// Weights are A, 64 rows of a warpgroup from registers: they lie in fragments. Tokens are B, rounded and packed before (tokens.cuh), from
// shared memory. Ranges of K are summed apart, which takes a second set of accumulators: 64 rows by 192 tokens are 96 + 96 registers of a
// thread and leave 40 of 232 for everything else. Two such warpgroups are a block of 128 by 192; a third, which gives its registers away, fills
// a ring of stages of 64 of K. Eight blocks are a cluster, or four where eight would have more blocks without work. Those in a row of it have the
// same weights, those in a column the same tokens, and of what blocks share each fetches a part, for all of them.
//
//   layers, 4 x 2    tokens 0 .. 191   192 .. 383      experts, 8 x 1    tokens 0 .. 191      rank = row + ROWS · col
//   rows 0 .. 127       block 0          block 4       rows 0 .. 127        block 0           panel p of a row comes from column p % COLS,
//      128 .. 255       block 1          block 5          128 .. 255        block 1           eight c of K of its tokens from row c % ROWS
//      …                …                …                …                 …
//
// Counted for a block and 16 of K, 786,432 FLOP, 192 cycles of a multiprocessor's tensor cores:
//   L2 cache        4 x 2: 2,048 bytes of weights and 1,536 of tokens are fetched, 219 FLOP a byte; 8 x 1: 4,096 and 768, 162 (2 x 2: 154; 4 x 1:
//                   140; a block by itself: 77). An expert has rows for 8 x 1 more often
//   shared memory   written 4,096 and 6,144, read by the warpgroups 2 · 2,048 and 2 · 6,144: 26,624 bytes, 208 cycles
//   instructions    for 64 of K, 768 cycles: up to 6 copies of one thread (8 x 1: 6), 40 arrivals at a barrier (8 x 1: 64)
// 98,304 bytes of results in f32 go out once. docs/gpu.md says what follows for layers of Kimi-VL.
//
//   full[stage]     one arrival, with the announced bytes of weights and tokens, whichever blocks send them
//   empty[stage]    one arrival of each of the eight warps that multiply, in each of the blocks that this one sends to
//
// A stage has up to four tiles of 16 along K, all of one range.
#pragma once
#include "gemm.cuh"
#include "hopper.cuh"
#include "tokens.cuh"

#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int WGMMA_THREADS = 384;
constexpr int STAGE_TILES = 4;

template <int N> struct Wgmma;
#define WGMMA_OF(n)                                                                                                                              \
    template <> struct Wgmma<n> {                                                                                                                \
        static __device__ __forceinline__ void add(float (&d)[n / 2], const unsigned (&a)[4], unsigned long long b, bf16) { wgmma_m64n##n##k16_bf16(d, a, b); } \
        static __device__ __forceinline__ void add(float (&d)[n / 2], const unsigned (&a)[4], unsigned long long b, f16) { wgmma_m64n##n##k16_f16(d, a, b); }   \
    };
WGMMA_OF(64)
WGMMA_OF(128)
WGMMA_OF(192)
#undef WGMMA_OF

// What a stage holds: tiles `first .. first + count`, and whether they end a range.
struct Chunk {
    int first, count, ends;
};
__device__ __forceinline__ Chunk chunk_from(int first, int units) {
    int per = units_per_range(units), end = min((first / per + 1) * per, units);
    int count = min(STAGE_TILES, end - first);
    return Chunk{first, count, first + count == end};
}

__device__ __forceinline__ int wgmma_half() { return warp_id() % 2; }

constexpr int CLUSTER_PANELS = 4, CLUSTER_TOKENS = 192;   // of a block
constexpr int CLUSTER_RING = 5;

// Elements of 16 bits of a stage: panels with their tiles, then columns of eight along K with their tokens.
struct ClusterStage {
    static constexpr int PANEL = STAGE_TILES * 512, WEIGHTS = CLUSTER_PANELS * PANEL;
    static constexpr int COLUMN = CLUSTER_TOKENS * 8, LEN = WEIGHTS + 2 * STAGE_TILES * COLUMN;
};

// What a block of a cluster has: `panels` from `panel` on, of `units` each, and tokens from `first_token` on, `tokens` of them, a multiple of 64.
// Both may be none: a block at the edge sends its share to others all the same.
template <class W, int ROWS, int COLS> struct ClusterWork {
    using Weight = W;
    static constexpr int SENDERS = ROWS + COLS - 1;   // blocks that send to this one, itself among them
    Ptr<const W> panel, x;                            // x: all tokens, packed
    int panels, units, first_token, tokens, columns;

    static __device__ __forceinline__ int row() { return (int)cluster_rank() % ROWS; }
    static __device__ __forceinline__ int col() { return (int)cluster_rank() / ROWS; }
    // The share of this block: every so many panels, and eights of K.
    static constexpr int PANEL_STEP = COLS, COLUMN_STEP = ROWS;
    // Blocks with the same weights, and those with the same tokens.
    static __device__ __forceinline__ unsigned same_weights() {
        unsigned mask = 0;
        for (int c = 0; c < COLS; c++) mask |= 1u << c * ROWS;
        return mask << row();
    }
    static __device__ __forceinline__ unsigned same_tokens() { return ((1u << ROWS) - 1) << col() * ROWS; }
};

struct ClusterRing {
    Ptr<unsigned long long> full, empty;
};

// By one thread: all that goes to this block, and its share of what others have as well.
template <class Work, class W> __device__ __forceinline__ void fill_clusters(const Work& work, Ptr<W> stages, const ClusterRing& ring) {
    unsigned short same_weights = (unsigned short)work.same_weights(), same_tokens = (unsigned short)work.same_tokens();
    Chunk chunk;
#pragma unroll 1
    for (int first = 0, n = 0; first < work.units; first += chunk.count, n++) {
        chunk = chunk_from(first, work.units);
        int stage = n % CLUSTER_RING;
        Ptr<W> weights = stages + stage * ClusterStage::LEN, tokens = weights + ClusterStage::WEIGHTS;
        mbarrier_wait_cluster(ring.empty + stage, (n / CLUSTER_RING & 1) ^ 1);
        mbarrier_arrive_expect(ring.full + stage, (unsigned)(chunk.count * (work.panels * 1024 + work.tokens * 32)));
#pragma unroll 1
        for (int p = work.col(); p < work.panels; p += Work::PANEL_STEP)
            bulk_copy_multicast(weights + p * ClusterStage::PANEL, work.panel + ((long long)p * work.units + first) * 512,
                                (unsigned)chunk.count * 1024, ring.full + stage, same_weights);
#pragma unroll 1
        for (int c = work.row(); c < 2 * chunk.count; c += Work::COLUMN_STEP)
#pragma unroll 1
            for (int at = 0, len; at < work.tokens; at += len) {
                int token = work.first_token + at;
                len = min(PACKED_TOKENS - token % PACKED_TOKENS, work.tokens - at);
                bulk_copy_multicast(tokens + (c * ClusterStage::COLUMN + at * 8), work.x + packed_place(token, 2 * first + c, work.columns),
                                    (unsigned)len * 16, ring.full + stage, same_tokens);
            }
    }
}

// Tells all blocks that send to this one that the warp has read a stage.
template <class Work> __device__ __forceinline__ void release_stage(const Work& work, const ClusterRing& ring, int stage) {
    unsigned senders = work.same_weights() | work.same_tokens(), lane = (unsigned)lane_id();
    __syncwarp();
    if (senders >> lane & 1) mbarrier_arrive_at(map_to_rank(ring.empty + stage, lane));
}

// By a warpgroup that has no rows, or no tokens.
template <class Work> __device__ __forceinline__ void pass_clusters(const Work& work, const ClusterRing& ring) {
    Chunk chunk;
    for (int first = 0, n = 0; first < work.units; first += chunk.count, n++) {
        chunk = chunk_from(first, work.units);
        mbarrier_wait(ring.full + n % CLUSTER_RING, n / CLUSTER_RING & 1);
        release_stage(work, ring, n % CLUSTER_RING);
    }
}

// By a warpgroup, for TOKENS tokens.
template <int TOKENS, class Work, class W>
__device__ __forceinline__ void drain_clusters(float (&total)[CLUSTER_TOKENS / 8][4], const Work& work, Ptr<W> stages, const ClusterRing& ring) {
    int lane = lane_id(), panel = warp_id() / 2 - 2, half = wgmma_half();
    float acc[TOKENS / 2] = {};
    Chunk chunk;
    for (int first = 0, n = 0; first < work.units; first += chunk.count, n++) {
        chunk = chunk_from(first, work.units);
        int stage = n % CLUSTER_RING;
        Ptr<W> weights = stages + stage * ClusterStage::LEN, tokens = weights + ClusterStage::WEIGHTS;
        mbarrier_wait(ring.full + stage, n / CLUSTER_RING & 1);
        // A panel that is not there counts as zeros.
        auto load = [&](Rows<W>& rows, int tile) {
            if (panel < work.panels) load_rows<Shared>(rows, weights + (panel * ClusterStage::PANEL + tile * 512), half, lane);
        };
        // Two columns of tokens, of which a descriptor counts 16 bytes.
        unsigned long long b = wgmma_descriptor(tokens, ClusterStage::COLUMN * 2, 128, false);
        auto multiply = [&](const Rows<W>& rows, int tile) { Wgmma<TOKENS>::add(acc, rows.a[0], b + tile * (ClusterStage::COLUMN / 4), W{}); };
        if (chunk.count == STAGE_TILES) {
            Rows<W> rows[STAGE_TILES] = {};
#pragma unroll
            for (int tile = 0; tile < STAGE_TILES; tile++) load(rows[tile], tile);
            wgmma_fence();
#pragma unroll
            for (int tile = 0; tile < STAGE_TILES; tile++) multiply(rows[tile], tile);
            wgmma_commit();
            wgmma_wait<0>();
        } else {
#pragma unroll 1
            for (int tile = 0; tile < chunk.count; tile++) {
                Rows<W> rows = {};
                load(rows, tile);
                wgmma_fence();
                multiply(rows, tile);
                wgmma_commit();
                wgmma_wait<0>();
            }
        }
        release_stage(work, ring, stage);
        if (chunk.ends) {
#pragma unroll
            for (int i = 0; i < TOKENS / 2; i++) total[i / 4][i % 4] += acc[i], acc[i] = 0;
        }
    }
}

// total[j]: 16 rows of the warp and tokens 8j .. 8j + 7, in the fragment of mma.m16n8k16; of panel (warp / 2 - 2) of the block, half warp % 2.
// False: this warp has none, it fills. Every thread of the block calls it, and must call cluster_wait once before it ends.
template <class Work> __device__ __forceinline__ bool multiply_clusters(float (&total)[CLUSTER_TOKENS / 8][4], const Work& work) {
    DYNAMIC_SHARED(typename Work::Weight, stages);
    SHARED(unsigned long long, full, CLUSTER_RING);
    SHARED(unsigned long long, empty, CLUSTER_RING);
    ClusterRing ring{full, empty};
    if (threadIdx.x == 0) {
        for (int i = 0; i < CLUSTER_RING; i++) {
            mbarrier_init(full + i, 1);
            mbarrier_init(empty + i, 8 * Work::SENDERS);
        }
        mbarrier_init_fence();
    }
    cluster_arrive();
    cluster_wait();
    if (threadIdx.x < 128) {
        registers_down<40>();
        if (threadIdx.x == 0) fill_clusters(work, stages, ring);
        cluster_arrive();
        return false;
    }
    registers_up<232>();
    if (warp_id() / 4 * 2 - 2 >= work.panels || work.tokens == 0) pass_clusters(work, ring);
    else if (work.tokens == 192) drain_clusters<192>(total, work, stages, ring);
    else if (work.tokens == 128) drain_clusters<128>(total, work, stages, ring);
    else drain_clusters<64>(total, work, stages, ring);
    // What was sent to this block has come; it must not end before others know that it was read.
    cluster_arrive();
    return true;
}

#endif
