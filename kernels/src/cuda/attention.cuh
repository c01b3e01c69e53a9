// The pieces of attention.cu and attention_expanded.cu: what lies where, and what a block of threads does with a tile, a range and a row.
#pragma once
#include "tokens.cuh"

constexpr int KEYS = 64;
constexpr float LOG2_E = 1.44269504f;
constexpr float LOWEST = -1e30f;  // below every score, but differences of it are numbers

struct AttendShape {
    int q_stride;                  // elements from one token to the next
    int d, dv;                     // widths of q and out; keys and values are as wide as their tiles
    int heads, rep;                // of q; that share a key head
    int block_heads, head_blocks;  // of a unit; units side by side that cover rep
    int key_stride, value_stride;  // elements from one slot to the next
    int key_head, value_head;      // from one key head to the next
    int block_size;                // 0: key p is row table + p
    int list;                      // of the header: which units
    int partials, maxima;          // where partial sums and their maxima and sums of weights begin in the scratch
    int window;                    // keys that a row sees at most: itself and those before it; 0x7fffffff: all
    int floats;                    // whether `out` gets the result where it is packed as well
    float scale;                   // times log2(e)
};

// As attention_plan.rs writes it, after a header of 8: begin and end of each list of units, then of `Split`s.
struct Unit {
    int table;          // first block in block_tables, or first row
    int first_token, num_tokens;
    int first_visible;  // keys that the first token sees; the next ones see one more each, or all the same (attention_segments.cu)
    int range_len, first_range, end_range;
    int slot;           // of the partial result of the first token; -1: all ranges are here
};

__device__ __forceinline__ Unit load_unit(Ptr<const int> work, int index) {
    int4 a = load_vec<int4>(work + 8 + index * 8), b = load_vec<int4>(work + 12 + index * 8);
    return Unit{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
}

// Sums in progress: a's maximum is `max`, b is added to it. Sums shrink by `keep`, b's grow by `take`.
struct Merge {
    float max, keep, take;
};
__device__ __forceinline__ Merge merge_of(float max, float b_max) {
    float larger = fmaxf(max, b_max);
    return Merge{larger, fast_exp2(max - larger), fast_exp2(b_max - larger)};
}
__device__ __forceinline__ float merged(Merge m, float a, float b) { return fmaf(a, m.keep, b * m.take); }
// A sink is a weight without a value.
__device__ __forceinline__ Merge with_sink(float max, float sink) { return merge_of(max, sink * LOG2_E); }

// Rows of D elements in pieces of 8, such that eight rows at one piece touch every bank once.
template <int D> struct Tile {
    static constexpr bool SWIZZLED = D % 64 == 0;
    static constexpr int STRIDE = SWIZZLED || D / 8 % 2 ? D : D + 8;
    // at(row + 8 n, piece + 8 m) = at(row, piece) + 8 n · STRIDE + 64 m
    static __device__ __forceinline__ int at(int row, int piece) {
        return row * STRIDE + (SWIZZLED ? piece ^ (row & 7) : piece) * 8;
    }
    // The same for `known + piece`, a multiple of 4 and less than 4: what the compiler knows becomes part of an instruction.
    static __device__ __forceinline__ int at(int row, int known, int piece) {
        return at(row, known % 8 + piece) + known / 8 * 64;
    }
};

// Where the result goes: in f32, and rounded as the linear layer after attention takes it, where it takes it so (tokens.cuh).
template <class W> struct Result {
    Ptr<float> out;   // or null
    Ptr<W> packed;    // or null

    // Of a token, from an even column of a head on. Heads are whole columns of eight.
    static __device__ __forceinline__ Result at(Ptr<float> out, Ptr<W> packed, int token, int head, int column, const AttendShape& s) {
        bool floats = packed == nullptr || s.floats;
        Result r{nullptr, packed};
        if (floats) r.out = out + (((long long)token * s.heads + head) * s.dv + column);
        if (packed != nullptr)
            r.packed = packed + (packed_place(token, head * (s.dv / 8) + column / 8, packed_columns(s.heads * s.dv)) + column % 8);
        return r;
    }
    // Two neighbours, `eights` further.
    __device__ __forceinline__ void store(int eights, float2 v) const {
        if (out != nullptr) store_vec(out + eights * 8, v);
        if (packed != nullptr) store_vec(packed + eights * PACKED_TOKENS * 8, Float<W>::pack(v.x, v.y));
    }
};

// Eight neighbours, rounded; zeros from `end` on. `end` is even.
template <class W> __device__ __forceinline__ uint4 round8(Ptr<const float> row, int first, int end) {
    unsigned r[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        r[i] = 0;
        if (first + 2 * i < end) {
            float2 v = load_vec<float2>(row + first + 2 * i);
            r[i] = Float<W>::pack(v.x, v.y);
        }
    }
    return make_uint4(r[0], r[1], r[2], r[3]);
}

template <class W> struct One;
template <> struct One<bf16> {
    static constexpr unsigned PAIR = 0x3f803f80u;
};
template <> struct One<f16> {
    static constexpr unsigned PAIR = 0x3c003c00u;
};

// What is where in shared memory, in elements of W.
template <int D, int DV, int M, int WARPS, int STAGES, bool LATENT> struct Layout {
    // With 16 rows, queries are in registers, but for the last 256 columns of wide ones.
    static constexpr int HELD = M == 16 ? (D > 512 ? D / 16 - 16 : D / 16) : 0;
    static constexpr int QUERIES = HELD == D / 16 ? 0 : M * (HELD ? 256 : Tile<D>::STRIDE);
    static constexpr int KEY_TILE = KEYS * Tile<D>::STRIDE, VALUE_TILE = LATENT ? 0 : KEYS * Tile<DV>::STRIDE;
    static constexpr int STAGE = KEY_TILE + VALUE_TILE;
    static constexpr int WEIGHTS = QUERIES + STAGES * STAGE;
    static constexpr int FLOATS = WEIGHTS + M * Tile<72>::STRIDE;  // 72: padding between rows of 64
    static constexpr int ROW_GROUPS = M / 16, KEY_GROUPS = WARPS / ROW_GROUPS;
    static constexpr int BYTES = FLOATS * 2 + (KEY_GROUPS + 3) * M * 4;
};

// scores += a · keys, two steps of D from `k` on, which is even: 8 keys for each of `scores`, which begin at row 0 of `keys`.
template <class W, int D, int TILES>
__device__ __forceinline__ void add_scores(float (&scores)[TILES][4], const unsigned (&a)[2][4], Ptr<W> keys, int k) {
    int lane = lane_id();
    unsigned b[4];
    if constexpr (TILES == 1) {
        ldmatrix_x4(b, keys + Tile<D>::at(lane % 8, k * 2, lane / 8));
        Float<W>::mma(scores[0], a[0], b[0], b[1]);
        Float<W>::mma(scores[0], a[1], b[2], b[3]);
    } else {
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int n = 0; n < TILES; n += 2) {
                ldmatrix_x4(b, keys + (Tile<D>::at(lane / 16 * 8 + lane % 8, k * 2, i * 2 + lane / 8 % 2) + n * 8 * Tile<D>::STRIDE));
                Float<W>::mma(scores[n], a[i], b[0], b[1]);
                Float<W>::mma(scores[n + 1], a[i], b[2], b[3]);
            }
    }
}

// One block of threads at work.
template <class W, int D, int DV, int M, int WARPS, int STAGES, bool LATENT> struct Block {
    using L = Layout<D, DV, M, WARPS, STAGES, LATENT>;
    using ValueTile = Tile<LATENT ? D : DV>;
    using QueryTile = Tile<L::HELD ? 256 : D>;
    static constexpr int THREADS = WARPS * 32, ROW_GROUPS = L::ROW_GROUPS, KEY_GROUPS = L::KEY_GROUPS, HELD = L::HELD;
    static constexpr int KEY_STEPS = D / 16, OWN_KEYS = KEYS / KEY_GROUPS, SCORE_TILES = OWN_KEYS / 8;
    static constexpr int PAIRS = DV / 16, PAIRS_EACH = PAIRS / WARPS;  // of 8 columns of values
    static_assert(KEY_STEPS % 2 == 0 && PAIRS % WARPS == 0, "two steps of keys at a time, as many columns for each warp");
    static_assert(WARPS % 4 == 0, "columns of a warp are whole segments apart");
    using Scores = float[SCORE_TILES][4];

    Ptr<const float> q;
    Ptr<const W> keys, values;
    Ptr<const int> tables;
    Ptr<float> scratch, out;
    Ptr<const float> sinks = nullptr;  // of each head: a logit that takes weight and has no value
    Ptr<W> packed;       // or null
    Ptr<W> memory, weights;
    Ptr<float> maxima;   // [KEY_GROUPS][M]: of a tile, and at the end of a range sums of weights
    Ptr<float> row_max;  // [2][M]: of a range, before and after a tile
    Ptr<float> shrink;   // [M]
    int thread, lane, warp, group, pair, row_group, key_group;

    // Of a unit.
    Unit unit;
    int key_head, first_head, num_heads, last_visible, end_key;
    unsigned held[HELD ? HELD / 2 : 1][2][4];
    // Of a range.
    float acc[ROW_GROUPS][PAIRS_EACH][2][4], sums[4];
    int parity;

    __device__ __forceinline__ Ptr<W> key_tile(int stage) { return memory + (L::QUERIES + stage * L::STAGE); }
    __device__ __forceinline__ Ptr<W> value_tile(int stage) { return LATENT ? key_tile(stage) : key_tile(stage) + L::KEY_TILE; }

    // Of the columns that this thread has. Latents are read by products of heads, in f32.
    __device__ __forceinline__ Result<W> result(int token, int head, const AttendShape& s) const {
        return Result<W>::at(out, LATENT ? Ptr<W>(nullptr) : packed, unit.first_token + token, first_head + head, warp * 16 + pair, s);
    }

    __device__ __forceinline__ void begin(Ptr<W> dynamic) {
        memory = dynamic, weights = memory + L::WEIGHTS;
        maxima = cast<float>(memory + L::FLOATS), row_max = maxima + KEY_GROUPS * M, shrink = row_max + 2 * M;
        thread = (int)threadIdx.x, lane = lane_id(), warp = warp_id(), group = lane / 4, pair = lane % 4 * 2;
        row_group = warp % ROW_GROUPS, key_group = warp / ROW_GROUPS;
    }

    // `place`: of all key heads and their blocks of heads, side by side.
    __device__ __forceinline__ void take(Unit next, int place, const AttendShape& s) {
        unit = next;
        int head_block = place % s.head_blocks;
        key_head = place / s.head_blocks;
        first_head = key_head * s.rep + head_block * s.block_heads;
        num_heads = min(s.block_heads, s.rep - head_block * s.block_heads);
        last_visible = unit.first_visible + unit.num_tokens - 1;
        end_key = min(last_visible, unit.end_range * unit.range_len);
        clear();
        parity = 0;
    }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            sums[j] = 0;
#pragma unroll
            for (int g = 0; g < ROW_GROUPS; g++)
#pragma unroll
                for (int i = 0; i < PAIRS_EACH; i++) acc[g][i][0][j] = 0, acc[g][i][1][j] = 0;
        }
    }

    // Row r is token r / block_heads, head r % block_heads; some are nobody's.
    __device__ __forceinline__ bool is_there(int row, const AttendShape& s) {
        return row / s.block_heads < unit.num_tokens && row % s.block_heads < num_heads;
    }
    __device__ __forceinline__ int visible_to(int row, const AttendShape& s) {
        return min(last_visible, unit.first_visible + row / s.block_heads);
    }
    // Whether a row that sees keys before `seen` does not see the one at a position. Latents have no window.
    static __device__ __forceinline__ bool is_hidden(int position, int seen, const AttendShape& s) {
        if constexpr (LATENT) return position >= seen;
        // What comes after the row is below 0, and so above every window.
        else return (unsigned)(seen - 1 - position) >= (unsigned)s.window;
    }
    // The first key of the unit's first tile: those before lie before every row's window, or in an earlier range.
    __device__ __forceinline__ int begin_key(const AttendShape& s) {
        int first = unit.first_range * unit.range_len;
        if constexpr (!LATENT) first = max(first, max(unit.first_visible - s.window, 0) / KEYS * KEYS);
        return first;
    }
    __device__ __forceinline__ Ptr<const float> query_of(int row, const AttendShape& s) {
        long long at = (long long)(unit.first_token + row / s.block_heads) * s.q_stride + (long long)(first_head + row % s.block_heads) * s.d;
        return is_there(row, s) ? q + at : Ptr<const float>(nullptr);
    }

    // A tile of keys and of values; beyond the last key that is seen: zeros.
    __device__ __forceinline__ void load_tile(int stage, int first, const AttendShape& s) {
        constexpr int EACH = THREADS / KEYS;
        int row = thread / EACH, part = thread % EACH, position = first + row, slot = unit.table + position;
        bool there = position < end_key;
        if (there && s.block_size) slot = tables[unit.table + position / s.block_size] * s.block_size + position % s.block_size;
        Ptr<const W> key = keys + (long long)key_head * s.key_head, value = values + (long long)key_head * s.value_head;
        if (there) key += (long long)slot * s.key_stride, value += (long long)slot * s.value_stride;
        Ptr<W> key_to = key_tile(stage), value_to = value_tile(stage);
#pragma unroll
        for (int i = 0; i < D / 8; i += EACH)
            cp_async16(key_to + Tile<D>::at(row, i / 4 * 4, i % 4 + part), key + (part * 8 + i * 8), there ? 16 : 0);
        if constexpr (!LATENT) {
#pragma unroll
            for (int i = 0; i < DV / 8; i += EACH)
                cp_async16(value_to + Tile<DV>::at(row, i / 4 * 4, i % 4 + part), value + (part * 8 + i * 8), there ? 16 : 0);
        }
    }

    // Queries, rounded: with 16 rows every warp has them as fragments; what is not held is in shared memory.
    __device__ __forceinline__ void load_queries(const AttendShape& s) {
        if constexpr (HELD > 0) {
            Ptr<const float> upper = query_of(group, s), lower = query_of(group + 8, s);
            auto load = [&](Ptr<const float> row, int column) {
                float2 v = make_float2(0, 0);
                if (row != nullptr) v = load_vec<float2>(row + column);
                return Float<W>::pack(v.x, v.y);
            };
#pragma unroll
            for (int k = 0; k < HELD; k++)
#pragma unroll
                for (int part = 0; part < 2; part++) {
                    held[k / 2][k % 2][part * 2] = load(upper, k * 16 + part * 8 + pair);
                    held[k / 2][k % 2][part * 2 + 1] = load(lower, k * 16 + part * 8 + pair);
                }
        }
        if constexpr (HELD < KEY_STEPS) {
            constexpr int PIECES = (KEY_STEPS - HELD) * 2;
            for (int i = thread; i < M * PIECES; i += THREADS) {
                Ptr<const float> from = query_of(i / PIECES, s);
                store_vec(memory + QueryTile::at(i / PIECES, i % PIECES), round8<W>(from, HELD * 16 + i % PIECES * 8, from != nullptr ? s.d : 0));
            }
        }
        if (thread < M) row_max[thread] = LOWEST;
    }

    // 16 rows and OWN_KEYS keys for each warp, sums over D from first to last.
    __device__ __forceinline__ void score(int stage, Scores& scores) {
        Ptr<W> own = key_tile(stage) + key_group * OWN_KEYS * Tile<D>::STRIDE;
        int row = row_group * 16 + lane % 16;
#pragma unroll
        for (int n = 0; n < SCORE_TILES; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) scores[n][j] = 0;
#pragma unroll
        for (int k = 0; k < HELD; k += 2) add_scores<W, D>(scores, held[k / 2], own, k);
#pragma unroll 2
        for (int k = HELD; k + 1 < KEY_STEPS; k += 2) {
            unsigned a[2][4];
            ldmatrix_x4(a[0], memory + QueryTile::at(row, (k - HELD) * 2, lane / 16));
            ldmatrix_x4(a[1], memory + QueryTile::at(row, (k - HELD) * 2, 2 + lane / 16));
            add_scores<W, D>(scores, a, own, k);
        }
    }

    // Scales and masks; the largest score of rows `row` and `row + 8`, over all warps that have a part of them.
    __device__ __forceinline__ void find_largest(int row, const int (&seen)[2], int first, const AttendShape& s, Scores& scores, float (&largest)[2]) {
        largest[0] = largest[1] = LOWEST;
#pragma unroll
        for (int n = 0; n < SCORE_TILES; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                bool hidden = is_hidden(first + n * 8 + pair + j % 2, seen[j / 2], s);
                scores[n][j] = hidden ? LOWEST : scores[n][j] * s.scale;
                largest[j / 2] = fmaxf(largest[j / 2], scores[n][j]);
            }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            largest[half] = fmaxf(largest[half], __shfl_xor_sync(~0u, largest[half], 1));
            largest[half] = fmaxf(largest[half], __shfl_xor_sync(~0u, largest[half], 2));
        }
        if constexpr (KEY_GROUPS > 1) {
            if (pair == 0) maxima[key_group * M + row] = largest[0], maxima[key_group * M + row + 8] = largest[1];
            __syncthreads();
#pragma unroll
            for (int other = 0; other < KEY_GROUPS; other++) {
                largest[0] = fmaxf(largest[0], maxima[other * M + row]);
                largest[1] = fmaxf(largest[1], maxima[other * M + row + 8]);
            }
        }
    }

    // Scores become weights in shared memory, maxima of the range rise.
    __device__ __forceinline__ void soften(int first_key, const AttendShape& s, Scores& scores) {
        int row = row_group * 16 + group, first = first_key + key_group * OWN_KEYS, seen[2] = {visible_to(row, s), visible_to(row + 8, s)};
        float largest[2];
        find_largest(row, seen, first, s, scores, largest);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float before = row_max[parity * M + row + half * 8], after = fmaxf(before, largest[half]);
            if (key_group == 0 && pair == 0) {
                row_max[(parity ^ 1) * M + row + half * 8] = after;
                shrink[row + half * 8] = fast_exp2(before - after);
            }
#pragma unroll
            for (int n = 0; n < SCORE_TILES; n++) {
                float w[2];
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    bool hidden = is_hidden(first + n * 8 + pair + j, seen[half], s);
                    w[j] = hidden ? 0.0f : fast_exp2(scores[n][half * 2 + j] - after);
                }
                store_vec(weights + ((row + half * 8) * Tile<72>::STRIDE + key_group * OWN_KEYS + n * 8 + pair), Float<W>::pack(w[0], w[1]));
            }
        }
        parity ^= 1;
    }

    // The fragment of 16 rows and 16 keys.
    __device__ __forceinline__ Ptr<W> weights_at(int rows, int keys) {
        return weights + ((rows * 16 + lane % 16) * Tile<72>::STRIDE + keys * 16 + lane / 16 * 8);
    }

    // All rows and some columns for each warp; sums of weights for the rows of its scores.
    __device__ __forceinline__ void add_values(int stage) {
#pragma unroll
        for (int g = 0; g < ROW_GROUPS; g++) {
            float keep[2] = {shrink[g * 16 + group], shrink[g * 16 + group + 8]};
#pragma unroll
            for (int j = 0; j < 4; j++) {
#pragma unroll
                for (int i = 0; i < PAIRS_EACH; i++) acc[g][i][0][j] *= keep[j / 2], acc[g][i][1][j] *= keep[j / 2];
            }
        }
        int row = row_group * 16 + group;
        sums[0] *= shrink[row], sums[2] *= shrink[row + 8];
        Ptr<W> own = value_tile(stage) + ValueTile::at(lane / 8 % 2 * 8 + lane % 8, warp * 2 + lane / 16);
// Unrolled, fragments of all steps would be on their way at once, and there are not so many registers.
#pragma unroll 1
        for (int k = 0; k < KEYS / 16; k++) {
            unsigned a[ROW_GROUPS][4], b[4];
#pragma unroll
            for (int g = 0; g < ROW_GROUPS; g++) ldmatrix_x4(a[g], weights_at(g, k));
            // Every column of this product is the sum of weights.
            unsigned own_rows[4];
            ldmatrix_x4(own_rows, weights_at(row_group, k));
            Float<W>::mma(sums, own_rows, One<W>::PAIR, One<W>::PAIR);
#pragma unroll
            for (int i = 0; i < PAIRS_EACH; i++) {
                ldmatrix_x4_trans(b, own + (k * 16 * ValueTile::STRIDE + i * WARPS * 16));
#pragma unroll
                for (int g = 0; g < ROW_GROUPS; g++) {
                    Float<W>::mma(acc[g][i][0], a[g], b[0], b[1]);
                    Float<W>::mma(acc[g][i][1], a[g], b[2], b[3]);
                }
            }
        }
    }

    // The queries, and the first of `num_tiles` tiles from a key on, are on their way.
    __device__ __forceinline__ void begin_tiles(int first_key, int num_tiles, const AttendShape& s) {
#pragma unroll
        for (int i = 0; i < STAGES - 1; i++) {
            if (i < num_tiles) load_tile(i, first_key + i * KEYS, s);
            cp_async_commit();
        }
        load_queries(s);
    }

    // Adds one of the tiles, from key `first` on, to the sums of its range; the tile STAGES - 1 after it is on its way then.
    __device__ __forceinline__ void add_tile(int tile, int first, int num_tiles, const AttendShape& s) {
        int stage = tile % STAGES;
        if constexpr (STAGES == 1) {
            __syncthreads();
            load_tile(0, first, s);
            cp_async_commit();
            cp_async_wait<0>();
            __syncthreads();
        } else {
            cp_async_wait<STAGES - 2>();
            __syncthreads();
            if (tile + STAGES - 1 < num_tiles) load_tile((tile + STAGES - 1) % STAGES, first + (STAGES - 1) * KEYS, s);
            cp_async_commit();
        }
        float scores[SCORE_TILES][4];
        score(stage, scores);
        soften(first, s, scores);
        __syncthreads();
        add_values(stage);
    }

    // Merges the sums of a range with those of earlier ones, which lie in the scratch, each thread its own: for each row maximum and
    // sum, for each column the values. The last range leaves the result, or a partial one for attention_combine.
    __device__ __forceinline__ void end_range(bool is_first, bool is_last, const AttendShape& s) {
        int row = row_group * 16 + group;
        if (key_group == 0 && pair == 0) maxima[row] = sums[0], maxima[row + 8] = sums[2];
        __syncthreads();
        Ptr<float> total = scratch + ((long long)blockIdx.x * THREADS + thread) * (ROW_GROUPS * (4 + PAIRS_EACH * 8));
#pragma unroll
        for (int g = 0; g < ROW_GROUPS; g++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                end_row(g, half, total + (g * 2 + half) * (2 + PAIRS_EACH * 4), is_first, is_last, s);
        if (is_last) return;
        clear();
        __syncthreads();
        if (thread < M) row_max[parity * M + thread] = LOWEST;
    }

    __device__ __forceinline__ void end_row(int g, int half, Ptr<float> mine, bool is_first, bool is_last, const AttendShape& s) {
        int row = g * 16 + group + half * 8, token = row / s.block_heads, head = row % s.block_heads;
        bool there = is_there(row, s), is_partial = unit.slot >= 0;
        float max = row_max[parity * M + row], sum = maxima[row];
        // A row that sees nothing of this range stays as it is.
        bool keeps = !is_first && sum == 0;
        Merge m = Merge{max, 0.0f, 1.0f};
        if (!is_first) {
            m = merge_of(mine[0], max);
            float old = mine[1];
            // And one that saw nothing before this range is as if it began here: its window does.
            if (!LATENT && old == 0) is_first = true;
            else sum = keeps ? old : merged(m, old, sum);
        }
        if (!is_last) mine[0] = m.max, mine[1] = sum;
        float times = 1, by = sum;
        if (!LATENT && is_last && !is_partial && sinks != nullptr && there) {
            Merge sink = with_sink(m.max, sinks[first_head + head]);
            times = sink.keep, by = fmaf(sum, sink.keep, sink.take);
        }
        long long place = (long long)((is_partial ? unit.slot : unit.first_token) + token) * s.heads + first_head + head;
        long long to = s.partials + place * s.dv;
        Result<W> result{nullptr, nullptr};
        if (is_last && !is_partial && there) result = this->result(token, head, s);
#pragma unroll
        for (int i = 0; i < PAIRS_EACH; i++)
#pragma unroll
            for (int side = 0; side < 2; side++) {
                float2 v = make_float2(acc[g][i][side][half * 2], acc[g][i][side][half * 2 + 1]);
                Ptr<float> at = mine + (2 + (i * 2 + side) * 2);
                if (!is_first) {
                    float2 old = load_vec<float2>(at);
                    v = keeps ? old : make_float2(merged(m, old.x, v.x), merged(m, old.y, v.y));
                }
                int column = (warp + i * WARPS) * 16 + side * 8 + pair;
                if (!is_last) store_vec(at, v);
                else if (there && column < s.dv) {
                    if (is_partial) store_vec(scratch + to + column, v);
                    else result.store(i * WARPS * 2 + side, make_float2(v.x * times / by, v.y * times / by));
                }
            }
        if (is_partial && there && warp == 0 && pair == 0) store_vec(scratch + (s.maxima + place * 2), make_float2(max, sum));
    }

    // Merges the sums of the only range of a unit with those of earlier ones, which other launches left: values where the result will be,
    // maxima and sums of weights in the scratch. Every row that is there sees something of the range.
    __device__ __forceinline__ void end_only_range(bool is_first, bool is_last, const AttendShape& s) {
        int own = row_group * 16 + group;
        if (key_group == 0 && pair == 0) maxima[own] = sums[0], maxima[own + 8] = sums[2];
        float2 old[ROW_GROUPS][2];
#pragma unroll
        for (int i = 0; i < ROW_GROUPS * 2; i++) {
            int row = i / 2 * 16 + group + i % 2 * 8;
            old[i / 2][i % 2] = make_float2(LOWEST, 0);
            if (!is_first && is_there(row, s)) old[i / 2][i % 2] = load_vec<float2>(scratch + place_of(row, s) * 2);
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < ROW_GROUPS * 2; i++) {
            int g = i / 2, half = i % 2, row = g * 16 + group + half * 8;
            if (is_there(row, s)) end_only_row(g, half, row, old[g][half], is_first, is_last, s);
        }
    }

    __device__ __forceinline__ long long place_of(int row, const AttendShape& s) {
        return (long long)(unit.first_token + row / s.block_heads) * s.heads + first_head + row % s.block_heads;
    }

    __device__ __forceinline__ void end_only_row(int g, int half, int row, float2 old, bool is_first, bool is_last, const AttendShape& s) {
        float max = row_max[parity * M + row], sum = maxima[row];
        Merge m = Merge{max, 0.0f, 1.0f};
        if (!is_first) {
            m = merge_of(old.x, max);
            sum = merged(m, old.y, sum);
        }
        long long place = place_of(row, s);
        Result<W> result = this->result(row / s.block_heads, row % s.block_heads, s);
#pragma unroll
        for (int i = 0; i < PAIRS_EACH; i++)
#pragma unroll
            for (int side = 0; side < 2; side++) {
                float2 v = make_float2(acc[g][i][side][half * 2], acc[g][i][side][half * 2 + 1]);
                int column = (warp + i * WARPS) * 16 + side * 8 + pair;
                if (column >= s.dv) continue;
                Ptr<float> at = out + (place * s.dv + column);
                if (!is_first) {
                    float2 before = load_vec<float2>(at);
                    v = make_float2(merged(m, before.x, v.x), merged(m, before.y, v.y));
                }
                if (is_last) result.store(i * WARPS * 2 + side, make_float2(v.x / sum, v.y / sum));
                else store_vec(at, v);
            }
        if (!is_last && warp == 0 && pair == 0) store_vec(scratch + place * 2, make_float2(m.max, sum));
    }
};
