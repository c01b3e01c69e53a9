// attend_segments: out[t, h] = Σ_p softmax_p(scale · q[t, h] · k[p, h]) v[p, h] over all tokens p of t's segment, on tensor cores
// round_heads:     queries, keys and values of all tokens, once: those of heads turned as rope.cu turns neighbours, rounded to W, filled up
// qkv [T, 3, H, D] f32 · D even, at most 80 · rounded [3, H, T, 80] W (bf16, f16), zeros from D on · out [T, H, D] f32, or rounded and packed
// (tokens.cuh) for a linear layer · sums in f32
// 4·D FLOP for each row and key; round_heads moves 12·T·H·D + 480·T·H bytes; attend_segments 320 for each key of a head and 128 rows of it, 160
// for each row, and 4·D or 2·D of its result; not measured: no GPU was available
//
// A unit is up to 128 tokens of a segment and one head, a warp has 32 of them (64 and 16 for heads wider than 72):
//
//   tile    64 keys at places in their segment: scores on tensor cores, a running maximum, weights rounded to W, sums on tensor cores
//
// keys [64, D] . queries, held in registers -> scores -> weights, which lie in registers as the next product takes them
// weights [rows of a warp, 64] . values [64, D] -> sums; sums of weights are products with ones
//
// A row's sums depend on its own segment alone: nothing is summed over warps, and a row has a lane group whatever its neighbours are.
#include "attention.cuh"
#include "rotate.cuh"
#include "tokens.cuh"

constexpr int SEGMENT_WARPS = 4;
constexpr int WIDTH = 80;  // of a rounded head
constexpr int STEPS = WIDTH / 16;

struct SegmentShape {
    int tokens, heads, d;
    int half;     // round_heads: pairs of a query's or a key's head that turn
    float scale;  // times log2(e)
};

constexpr int ROUND_THREADS = 256;

// `packed`: where attend_segments leaves its result packed, what this fills up with zeros. grid: tokens; with `packed` filled up
template <class W>
__global__ void __launch_bounds__(ROUND_THREADS)
    round_heads(In<float> qkv, In<float> cos_table, In<float> sin_table, In<int> positions, SegmentShape s, Out<W> rounded, Out<W> packed) {
    constexpr int PIECES = WIDTH / 8;
    int token = (int)blockIdx.x;
    bool there = token < s.tokens;
    if (there) {
        long long angles = s.half ? (long long)positions[token] * s.half : 0;
        Ptr<const float> row = qkv + (long long)token * 3 * s.heads * s.d;
        for (int i = (int)threadIdx.x; i < 3 * s.heads * PIECES; i += ROUND_THREADS) {
            int head = i / PIECES, first = i % PIECES * 8;
            unsigned r[4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int at = first + 2 * j;
                float2 v = make_float2(0, 0);
                if (at < s.d) v = load_vec<float2>(row + (head * s.d + at));
                if (head < 2 * s.heads && at / 2 < s.half) v = rotated(v.x, v.y, cos_table[angles + at / 2], sin_table[angles + at / 2]);
                r[j] = Float<W>::pack(v.x, v.y);
            }
            store_vec(rounded + (((long long)head * s.tokens + token) * WIDTH + first), make_uint4(r[0], r[1], r[2], r[3]));
        }
    }
    if (packed == nullptr) return;
    int width = s.heads * s.d, columns = packed_columns(width);
    for (int i = (there ? width : 0) + (int)threadIdx.x; i < columns * 8; i += ROUND_THREADS)
        packed[packed_place(token, i / 8, columns) + i % 8] = Float<W>::from(0.0f);
}

// One tile of keys or of values; beyond the last of the segment: zeros.
template <class W> __device__ __forceinline__ void load_rows(Ptr<W> to, Ptr<const W> from, int first, int end) {
    constexpr int EACH = SEGMENT_WARPS * 32 / KEYS;
    int row = (int)threadIdx.x / EACH, part = (int)threadIdx.x % EACH;
    bool there = first + row < end;
    from += (long long)(there ? first + row : 0) * WIDTH;
#pragma unroll
    for (int i = 0; i < WIDTH / 8; i += EACH) cp_async16(to + Tile<WIDTH>::at(row, i + part), from + (i + part) * 8, there ? 16 : 0);
}

// What a warp has of its rows: GROUPS of 16.
template <class W, int COLUMNS, int GROUPS> struct WarpRows {
    static constexpr int TILES = COLUMNS / 8;  // of 8 columns of values
    unsigned queries[GROUPS][STEPS][4];
    float acc[GROUPS][TILES][4], sums[GROUPS][4], row_max[GROUPS][2];

    // From row `first` on, of which `count` are there.
    __device__ __forceinline__ void begin(Ptr<const W> q, int first, int count) {
        int group = lane_id() / 4, pair = lane_id() % 4 * 2;
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = first + g * 16 + half * 8 + group;
                row_max[g][half] = LOWEST;
#pragma unroll
                for (int k = 0; k < STEPS; k++)
#pragma unroll
                    for (int part = 0; part < 2; part++) {
                        unsigned v = 0;
                        // What the compiler knows to be zero takes no register.
                        if (k * 16 + part * 8 < COLUMNS && row < count) v = load_vec<unsigned>(q + ((long long)row * WIDTH + k * 16 + part * 8 + pair));
                        queries[g][k][part * 2 + half] = v;
                    }
            }
#pragma unroll
            for (int j = 0; j < 4; j++) {
                sums[g][j] = 0;
#pragma unroll
                for (int i = 0; i < TILES; i++) acc[g][i][j] = 0;
            }
        }
    }

    // Adds a tile of which the first `seen` keys are there: one at least.
    __device__ __forceinline__ void add_tile(Ptr<W> keys, Ptr<W> values, int seen, float scale) {
        int lane = lane_id();
        float scores[GROUPS][KEYS / 8][4] = {};
#pragma unroll
        for (int k = 0; k < STEPS; k++)
#pragma unroll
            for (int n = 0; n < KEYS / 8; n += 2) {
                unsigned b[4];
                ldmatrix_x4(b, keys + (Tile<WIDTH>::at(lane / 16 * 8 + lane % 8, k * 2 + lane / 8 % 2) + n * 8 * Tile<WIDTH>::STRIDE));
#pragma unroll
                for (int g = 0; g < GROUPS; g++) {
                    Float<W>::mma(scores[g][n], queries[g][k], b[0], b[1]);
                    Float<W>::mma(scores[g][n + 1], queries[g][k], b[2], b[3]);
                }
            }
        // Weights of 16 rows and 16 keys as the product with values takes them: scores lie in the same lanes.
        unsigned weights[GROUPS][KEYS / 16][4];
#pragma unroll
        for (int g = 0; g < GROUPS; g++) soften(g, scores[g], seen, scale, weights[g]);
        Ptr<W> own = values + Tile<WIDTH>::at(lane % 16, lane / 16);
#pragma unroll
        for (int k = 0; k < KEYS / 16; k++) {
            // Every column of this product is the sum of weights.
#pragma unroll
            for (int g = 0; g < GROUPS; g++) Float<W>::mma(sums[g], weights[g][k], One<W>::PAIR, One<W>::PAIR);
#pragma unroll
            for (int i = 0; i + 1 < TILES; i += 2) {
                unsigned b[4];
                ldmatrix_x4_trans(b, own + (k * 16 * Tile<WIDTH>::STRIDE + i * 8));
#pragma unroll
                for (int g = 0; g < GROUPS; g++) {
                    Float<W>::mma(acc[g][i], weights[g][k], b[0], b[1]);
                    Float<W>::mma(acc[g][i + 1], weights[g][k], b[2], b[3]);
                }
            }
            if constexpr (TILES % 2) {
                unsigned b[2];
                ldmatrix_x2_trans(b, values + (Tile<WIDTH>::at(lane % 16, TILES - 1) + k * 16 * Tile<WIDTH>::STRIDE));
#pragma unroll
                for (int g = 0; g < GROUPS; g++) Float<W>::mma(acc[g][TILES - 1], weights[g][k], b[0], b[1]);
            }
        }
    }

    // Scores become weights, rounded; maxima rise, and what was summed shrinks.
    __device__ __forceinline__ void soften(int g, float (&scores)[KEYS / 8][4], int seen, float scale, unsigned (&weights)[KEYS / 16][4]) {
        int pair = lane_id() % 4 * 2;
        float largest[2] = {LOWEST, LOWEST};
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) scores[n][j] *= scale;
        // The last tile alone has keys that are nobody's: so far below any other that their weight is 0.
        if (seen < KEYS) {
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    if (n * 8 + pair + j % 2 >= seen) scores[n][j] = LOWEST;
        }
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) largest[j / 2] = fmaxf(largest[j / 2], scores[n][j]);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            largest[half] = fmaxf(largest[half], __shfl_xor_sync(~0u, largest[half], 1));
            largest[half] = fmaxf(largest[half], __shfl_xor_sync(~0u, largest[half], 2));
            float before = row_max[g][half], after = fmaxf(before, largest[half]), shrink = fast_exp2(before - after);
            row_max[g][half] = after;
            sums[g][half * 2] *= shrink;
#pragma unroll
            for (int i = 0; i < TILES; i++) acc[g][i][half * 2] *= shrink, acc[g][i][half * 2 + 1] *= shrink;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
                float lo = fast_exp2(scores[n][half * 2] - after), hi = fast_exp2(scores[n][half * 2 + 1] - after);
                weights[n / 2][n % 2 * 2 + half] = Float<W>::pack(lo, hi);
            }
        }
    }
};

// grid: as many blocks as the device holds at once; each takes every gridDim-th unit of work. COLUMNS: at least D. GROUPS of 16 rows for each warp,
// which what it reads of keys and values serves: as many as there are registers for
template <class W, int COLUMNS, int GROUPS>
__global__ void __launch_bounds__(SEGMENT_WARPS * 32, 2)
    attend_segments(In<W> rounded, In<int> work, SegmentShape s, Out<float> out, Out<W> packed) {
    constexpr int PART = KEYS * Tile<WIDTH>::STRIDE;
    SHARED(W, tiles, 2 * 2 * PART);
    int begin = work[2], units = work[3] - begin, group = lane_id() / 4, pair = lane_id() % 4 * 2, first_row = warp_id() * GROUPS * 16;
    int columns = packed_columns(s.heads * s.d);
    for (int index = (int)blockIdx.x; index < units * s.heads; index += (int)gridDim.x) {
        Unit unit = load_unit(work, begin + index / s.heads);
        int head = index % s.heads, num_keys = unit.first_visible, num_tiles = (num_keys + KEYS - 1) / KEYS;
        auto part = [&](int part, int token) { return rounded + (((long long)part * s.heads + head) * s.tokens + token) * WIDTH; };
        Ptr<const W> keys = part(1, unit.table), values = part(2, unit.table);
        auto load = [&](int tile) {
            Ptr<W> to = tiles + tile % 2 * 2 * PART;
            load_rows<W>(to, keys, tile * KEYS, num_keys);
            load_rows<W>(to + PART, values, tile * KEYS, num_keys);
            cp_async_commit();
        };
        // Nobody reads the last unit's tiles any more.
        __syncthreads();
        load(0);
        bool has_rows = first_row < unit.num_tokens;
        WarpRows<W, COLUMNS, GROUPS> rows;
        rows.begin(part(0, unit.first_token), first_row, unit.num_tokens);
#pragma unroll 1
        for (int tile = 0; tile < num_tiles; tile++) {
            cp_async_wait<0>();
            __syncthreads();
            if (tile + 1 < num_tiles) load(tile + 1);
            Ptr<W> stage = tiles + tile % 2 * 2 * PART;
            if (has_rows) rows.add_tile(stage, stage + PART, num_keys - tile * KEYS, s.scale);
        }
#pragma unroll
        for (int g = 0; g < GROUPS; g++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = first_row + g * 16 + half * 8 + group, token = unit.first_token + row;
                if (row >= unit.num_tokens) continue;
                float sum = rows.sums[g][half * 2];
                // Eight columns further is the next column of what is packed.
                int first = head * s.d + pair;
                Ptr<float> to = out + ((long long)token * s.heads * s.d + first);
                Ptr<W> packed_to = packed + (packed_place(token, first / 8, columns) + first % 8);
#pragma unroll
                for (int i = 0; i < COLUMNS / 8; i++) {
                    if (i * 8 + pair >= s.d) break;
                    float2 v = make_float2(rows.acc[g][i][half * 2] / sum, rows.acc[g][i][half * 2 + 1] / sum);
                    if (packed == nullptr) store_vec(to + i * 8, v);
                    else store_vec(packed_to + i * PACKED_TOKENS * 8, Float<W>::pack(v.x, v.y));
                }
            }
    }
}
