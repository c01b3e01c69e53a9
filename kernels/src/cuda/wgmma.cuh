// Products of weights and many tokens on sm_90a (linear.cu, moe.cu): wgmma, fed by bulk copies. Every sum is made as gemm.cuh says, so that
// the results are those of mma.sync if the hardware rounds both alike, which a GPU must show (docs/gpu.md).
//
// A block is three warpgroups around a ring of stages. The first fills: one thread copies weights in bulk, all of them round tokens.
// The others multiply: weights are A, 64 rows from registers, and tokens are B, from shared memory in rows of 128 bytes, swizzled.
//
//   full[stage]    128 arrivals for tokens, one for the announced bytes of weights
//   empty[stage]   one arrival of each of the eight warps that multiply
//
// A stage has up to four tiles of 16 along K, all of one range.
#pragma once
#include "gemm.cuh"
#include "hopper.cuh"

#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int WGMMA_THREADS = 384;
constexpr int RING = 4;
constexpr int STAGE_TILES = 4;

// Where panels take TURNS (gate and up), a warp has the same half of both, for half as many tokens.
template <bool TURNS> struct WgmmaTile {
    static constexpr int PARTS = TURNS ? 2 : 1, TOKENS = TURNS ? 64 : 128, PANELS = 4 * PARTS;
    static constexpr int WEIGHTS = PANELS * STAGE_TILES * 512, STAGE = WEIGHTS + TOKENS * 64;   // elements of 16 bits
};

template <int N> struct Wgmma;
template <> struct Wgmma<64> {
    static __device__ __forceinline__ void add(float (&d)[32], const unsigned (&a)[4], unsigned long long b, bf16) { wgmma_m64n64k16_bf16(d, a, b); }
    static __device__ __forceinline__ void add(float (&d)[32], const unsigned (&a)[4], unsigned long long b, f16) { wgmma_m64n64k16_f16(d, a, b); }
};
template <> struct Wgmma<128> {
    static __device__ __forceinline__ void add(float (&d)[64], const unsigned (&a)[4], unsigned long long b, bf16) { wgmma_m64n128k16_bf16(d, a, b); }
    static __device__ __forceinline__ void add(float (&d)[64], const unsigned (&a)[4], unsigned long long b, f16) { wgmma_m64n128k16_f16(d, a, b); }
};

// What a stage holds: tiles `first .. first + count`, and whether they end a range.
struct Chunk {
    int first, count, ends;
};
__device__ __forceinline__ Chunk chunk_from(int first, int units) {
    int per = units_per_range(units), end = min((first / per + 1) * per, units);
    int count = min(STAGE_TILES, end - first);
    return Chunk{first, count, first + count == end};
}

// Where the warps that multiply have their rows: panel of the block (of the first part), half of it.
template <bool TURNS> __device__ __forceinline__ int wgmma_panel() {
    int pair = (warp_id() / 4 - 1) * 2 + warp_id() % 4 / 2;
    return TURNS ? 2 * pair : pair;
}
__device__ __forceinline__ int wgmma_half() { return warp_id() % 2; }

// total[part][j]: 16 rows of the warp and tokens 8j .. 8j + 7, in the fragment of mma.m16n8k16. False: this warp has none, it fills.
// `row_of(i)`: the row of x that is the block's token i, or -1 for none. `panel` is the block's first, of `panels` that are there.
template <bool TURNS, class X, class W, class RowOf>
__device__ __forceinline__ bool multiply_wgmma(float (&total)[WgmmaTile<TURNS>::PARTS][WgmmaTile<TURNS>::TOKENS / 8][4], Ptr<const W> panel,
                                               int panels, int units, const Source<X>& from, const RowOf& row_of) {
    using Tile = WgmmaTile<TURNS>;
    constexpr int PARTS = Tile::PARTS, TOKENS = Tile::TOKENS;
    DYNAMIC_SHARED(W, stages);
    SHARED(unsigned long long, full, RING);
    SHARED(unsigned long long, empty, RING);
    int thread = (int)threadIdx.x, lane = lane_id();
    panels = min(panels, Tile::PANELS);
    if (thread == 0) {
        for (int i = 0; i < RING; i++) {
            mbarrier_init(full + i, 129);
            mbarrier_init(empty + i, 8);
        }
        mbarrier_init_fence();
    }
    __syncthreads();
    if (thread < 128) {
        // A thread has 8 neighbours along K of every sixteenth token.
        constexpr int PASSES = TOKENS / 16;
        int source[PASSES], piece = thread % 8;
#pragma unroll
        for (int i = 0; i < PASSES; i++) source[i] = row_of(i * 16 + thread / 8);
        Chunk chunk;
        for (int first = 0, n = 0; first < units; first += chunk.count, n++) {
            chunk = chunk_from(first, units);
            int stage = n % RING;
            Ptr<W> weights = stages + stage * Tile::STAGE, tokens = weights + Tile::WEIGHTS;
            mbarrier_wait(empty + stage, (n / RING & 1) ^ 1);
            if (thread == 0) {
                unsigned bytes = (unsigned)chunk.count * 1024;
                mbarrier_arrive_expect(full + stage, (unsigned)panels * bytes);
                for (int p = 0; p < panels; p++)
                    bulk_copy(weights + p * STAGE_TILES * 512, panel + ((long long)p * units + first) * 512, bytes, full + stage);
            }
            if (piece < chunk.count * 2)
#pragma unroll
                for (int i = 0; i < PASSES; i++) {
                    unsigned held[4] = {};
                    if (source[i] >= 0) {
                        Ptr<const X> row = from.x + (long long)source[i] * from.stride;
#pragma unroll
                        for (int j = 0; j < 4; j++) held[j] = load_pair<X, W>(row, first * 16 + piece * 8 + 2 * j, from.k, from.pairs);
                    }
                    int token = i * 16 + thread / 8;
                    store_vec(tokens + (token * 64 + (piece ^ token % 8) * 8), make_uint4(held[0], held[1], held[2], held[3]));
                }
            fence_async_proxy();
            mbarrier_arrive(full + stage);
        }
        return false;
    }
    int mine = wgmma_panel<TURNS>(), half = wgmma_half();
    float acc[PARTS][TOKENS / 2] = {};
    Chunk chunk;
    for (int first = 0, n = 0; first < units; first += chunk.count, n++) {
        chunk = chunk_from(first, units);
        int stage = n % RING;
        Ptr<W> weights = stages + stage * Tile::STAGE, tokens = weights + Tile::WEIGHTS;
        mbarrier_wait(full + stage, n / RING & 1);
        // The weights of the next tile are loaded while this one is multiplied. Panels that are not there count as zeros.
        Rows<W> next[PARTS] = {};
        auto load = [&](int tile) {
#pragma unroll
            for (int part = 0; part < PARTS; part++)
                if (mine + part < panels)
                    load_rows<Shared>(next[part], weights + ((mine + part) * STAGE_TILES + tile) * 512, half, lane);
        };
        load(0);
#pragma unroll 1
        for (int tile = 0; tile < chunk.count; tile++) {
            Rows<W> rows[PARTS];
#pragma unroll
            for (int part = 0; part < PARTS; part++) rows[part] = next[part];
            unsigned long long b = wgmma_descriptor(tokens + tile * 16, 0, 1024, true);
            wgmma_fence();
#pragma unroll
            for (int part = 0; part < PARTS; part++) Wgmma<TOKENS>::add(acc[part], rows[part].a[0], b, W{});
            wgmma_commit();
            if (tile + 1 < chunk.count) load(tile + 1);
            wgmma_wait<0>();
        }
        __syncwarp();
        if (lane == 0) mbarrier_arrive(empty + stage);
        if (chunk.ends) {
#pragma unroll
            for (int part = 0; part < PARTS; part++)
#pragma unroll
                for (int i = 0; i < TOKENS / 2; i++) total[part][i / 4][i % 4] += acc[part][i], acc[part][i] = 0;
        }
    }
    return true;
}

#endif
