// attend: out[t, h] = Σ_p softmax_p(scale · q[t, h] · k[p]) v[p], on tensor cores, over pages or packed segments
// q f32, rounded to W · keys, values W (bf16, f16) in pages; S float: packed segments in f32, rounded to W · out f32 · sums in f32
// moves 2·(D + DV) bytes for each key and block of rows (LATENT: 2·D); 2·(D + DV) FLOP for each row and key
// not measured: no GPU was available
//
// A unit of work is up to M rows (tokens x heads that share a key head) and some ranges of their keys. Who makes the list of units
// (attention_plan.rs) may cut the work as it likes, because what a row gets depends on what it sees alone:
//
//   tile    64 keys at absolute positions: scores on tensor cores, a running maximum, weights rounded to W, sums on tensor cores
//   range   512 keys or more, by how many keys the row sees, cut at absolute positions: begins with empty sums
//   row     its ranges merged from first to last: by the block that computes them, through global memory, or by attention_combine
//
// keys [64, D] . queries [M, D] -> scores, warps side by side along rows, then keys -> weights [M, 64] in shared memory
// weights [M, 64] . values [64, DV] -> sums, warps side by side along DV; sums of weights are products with ones
#include "common.cuh"

constexpr int KEYS = 64;
constexpr float LOWEST = -1e30f;  // below every score, but differences of it are numbers

struct AttendShape {
    int q_stride;                  // elements from one token to the next
    int d, dv;                     // widths in memory, of which the last tile's rest is filled with zeros
    int heads, rep;                // of q; that share a key head
    int block_heads, head_blocks;  // of a unit; units side by side that cover rep
    int key_stride, value_stride;  // elements from one slot to the next
    int key_head, value_head;      // from one key head to the next
    int block_size;                // 0: key p is row table + p, and every token sees all keys of its unit
    int list;                      // of the header: which units
    int partials, maxima;          // where partial sums and their maxima and sums of weights begin in the scratch
    float scale;                   // times log2(e)
};

// As attention_plan.rs writes it, after a header of 8: begin and end of each list of units, then of `Split`s.
struct Unit {
    int table;          // first block in block_tables, or first row
    int first_token, num_tokens;
    int first_visible;  // keys that the first token sees; the next ones see one more each, or all the same
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

// scores += a · keys, STEPS steps of D from `k` on, which is even: 8 keys for each of `scores`, which begin at row 0 of `keys`.
template <class W, int D, int TILES, int STEPS>
__device__ __forceinline__ void add_scores(float (&scores)[TILES][4], const unsigned (&a)[STEPS][4], Ptr<W> keys, int k) {
    int lane = lane_id();
    unsigned b[4];
    if constexpr (TILES == 1) {
        ldmatrix_x4(b, keys + Tile<D>::at(lane % 8, k * 2, lane / 8));
        Float<W>::mma(scores[0], a[0], b[0], b[1]);
        Float<W>::mma(scores[0], a[1], b[2], b[3]);
    } else {
#pragma unroll
        for (int i = 0; i < STEPS; i++)
#pragma unroll
            for (int n = 0; n < TILES; n += 2) {
                ldmatrix_x4(b, keys + (Tile<D>::at(lane / 16 * 8 + lane % 8, k * 2, i * 2 + lane / 8 % 2) + n * 8 * Tile<D>::STRIDE));
                Float<W>::mma(scores[n], a[i], b[0], b[1]);
                Float<W>::mma(scores[n + 1], a[i], b[2], b[3]);
            }
    }
}

// grid: as many blocks as the device holds at once; each takes every gridDim-th unit of work
template <class W, class S, int D, int DV, int M, int WARPS, int STAGES, bool LATENT>
__global__ void __launch_bounds__(WARPS * 32, 1)
    attend(In<float> q, In<S> keys, In<S> values, In<int> tables, In<int> work, AttendShape s, Out<float> scratch, Out<float> out) {
    using L = Layout<D, DV, M, WARPS, STAGES, LATENT>;
    constexpr int THREADS = WARPS * 32, ROW_GROUPS = L::ROW_GROUPS, KEY_GROUPS = L::KEY_GROUPS;
    using ValueTile = Tile<LATENT ? D : DV>;
    static_assert(WARPS % 4 == 0, "columns of a warp are whole segments apart");
    constexpr int KEY_STEPS = D / 16, HELD = L::HELD, SCORE_TILES = KEYS / KEY_GROUPS / 8;
    constexpr int PAIRS = DV / 16, PAIRS_EACH = (PAIRS + WARPS - 1) / WARPS;  // of 8 columns of values
    DYNAMIC_SHARED(W, memory);
    Ptr<W> queries = memory, weights = memory + L::WEIGHTS;
    Ptr<float> maxima = cast<float>(memory + L::FLOATS);    // [KEY_GROUPS][M]: of a tile
    Ptr<float> row_max = maxima + KEY_GROUPS * M;           // [2][M]: of a range, before and after a tile
    Ptr<float> shrink = row_max + 2 * M;                    // [M]
    int thread = (int)threadIdx.x, lane = lane_id(), warp = warp_id(), group = lane / 4, pair = lane % 4 * 2;
    int row_group = warp % ROW_GROUPS, key_group = warp / ROW_GROUPS;

    int begin = work[2 * s.list], units = work[2 * s.list + 1] - begin, groups = s.heads / s.rep * s.head_blocks;
    for (int index = (int)blockIdx.x; index < units * groups; index += (int)gridDim.x) {
        Unit unit = load_unit(work, begin + index / groups);
        int key_head = index % groups / s.head_blocks, head_block = index % s.head_blocks;
        int first_head = key_head * s.rep + head_block * s.block_heads;
        int num_heads = min(s.block_heads, s.rep - head_block * s.block_heads);
        int last_visible = unit.first_visible + (s.block_size ? unit.num_tokens - 1 : 0);
        int first_key = unit.first_range * unit.range_len;
        int end_key = min(last_visible, unit.end_range * unit.range_len);
        Ptr<const S> key_base = keys + (long long)key_head * s.key_head, value_base = values + (long long)key_head * s.value_head;

        // Row r is token r / block_heads, head r % block_heads; null where there is none.
        auto query_of = [&](int row) {
            int token = row / s.block_heads, head = row % s.block_heads;
            bool there = token < unit.num_tokens && head < num_heads;
            long long at = (long long)(unit.first_token + token) * s.q_stride + (long long)(first_head + head) * s.d;
            return there ? q + at : Ptr<const float>(nullptr);
        };
        auto visible_to = [&](int row) { return min(last_visible, unit.first_visible + row / s.block_heads); };

        // A tile of keys and of values; beyond the last key that is seen: zeros.
        auto load_tile = [&](int stage, int first) {
            constexpr int EACH = THREADS / KEYS;
            int row = thread / EACH, position = first + row, slot = unit.table + position;
            bool there = position < end_key;
            if (there && s.block_size) slot = tables[unit.table + position / s.block_size] * s.block_size + position % s.block_size;
            long long key_at = there ? (long long)slot * s.key_stride : 0, value_at = there ? (long long)slot * s.value_stride : 0;
            if (sizeof(S) == 2) key_at += thread % EACH * 8, value_at += thread % EACH * 8;
            Ptr<W> key_tile = memory + (L::QUERIES + stage * L::STAGE), value_tile = key_tile + L::KEY_TILE;
            if constexpr (sizeof(S) == 4) {
                for (int piece = thread % EACH; piece < D / 8; piece += EACH)
                    store_vec(key_tile + Tile<D>::at(row, piece), round8<W>(key_base + key_at, piece * 8, there ? s.d : 0));
                for (int piece = thread % EACH; piece < DV / 8; piece += EACH)
                    store_vec(value_tile + Tile<DV>::at(row, piece), round8<W>(value_base + value_at, piece * 8, there ? s.dv : 0));
            } else {
#pragma unroll
                for (int i = 0; i < D / 8; i += EACH)
                    cp_async16(key_tile + Tile<D>::at(row, i / 4 * 4, i % 4 + thread % EACH), key_base + (key_at + i * 8), there ? 16 : 0);
                if constexpr (!LATENT) {
#pragma unroll
                    for (int i = 0; i < DV / 8; i += EACH)
                        cp_async16(value_tile + Tile<DV>::at(row, i / 4 * 4, i % 4 + thread % EACH), value_base + (value_at + i * 8),
                                   there ? 16 : 0);
                }
            }
        };

        // Nobody reads the last unit's shared memory any more.
        __syncthreads();
        int num_tiles = (end_key - first_key + KEYS - 1) / KEYS;
#pragma unroll
        for (int i = 0; i < STAGES - 1; i++) {
            if (i < num_tiles) load_tile(i, first_key + i * KEYS);
            cp_async_commit();
        }
        unsigned held[HELD ? HELD / 2 : 1][2][4];
        if constexpr (M == 16) {
            // One row group: every warp has its queries as fragments.
            Ptr<const float> upper = query_of(group), lower = query_of(group + 8);
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
        using QueryTile = Tile<HELD ? 256 : D>;
        if constexpr (HELD < KEY_STEPS) {
            constexpr int PIECES = (KEY_STEPS - HELD) * 2;
            for (int i = thread; i < M * PIECES; i += THREADS) {
                int row = i / PIECES, piece = i % PIECES;
                Ptr<const float> from = query_of(row);
                store_vec(queries + QueryTile::at(row, piece), round8<W>(from, HELD * 16 + piece * 8, from != nullptr ? s.d : 0));
            }
        }
        if (thread < M) row_max[thread] = LOWEST;

        float acc[ROW_GROUPS][PAIRS_EACH][2][4] = {}, sums[4] = {};
        int parity = 0;
        for (int tile = 0; tile < num_tiles; tile++) {
            int first = first_key + tile * KEYS, stage = tile % STAGES;
            if constexpr (STAGES == 1) {
                __syncthreads();
                load_tile(0, first);
                cp_async_commit();
                cp_async_wait<0>();
                __syncthreads();
            } else {
                cp_async_wait<STAGES - 2>();
                __syncthreads();
                if (tile + STAGES - 1 < num_tiles) load_tile((tile + STAGES - 1) % STAGES, first + (STAGES - 1) * KEYS);
                cp_async_commit();
            }
            Ptr<W> key_tile = memory + (L::QUERIES + stage * L::STAGE), value_tile = LATENT ? key_tile : key_tile + L::KEY_TILE;

            // Scores: 16 rows and KEYS / KEY_GROUPS keys for each warp, sums over D from first to last.
            float scores[SCORE_TILES][4] = {};
            int key = key_group * (KEYS / KEY_GROUPS);
            Ptr<W> own_keys = key_tile + key * Tile<D>::STRIDE;
#pragma unroll
            for (int k = 0; k < HELD; k += 2) add_scores<W, D>(scores, held[k / 2], own_keys, k);
            int at = row_group * 16 + lane % 16;
#pragma unroll 2
            for (int k = HELD; k + 1 < KEY_STEPS; k += 2) {
                unsigned a[2][4];
                ldmatrix_x4(a[0], queries + QueryTile::at(at, (k - HELD) * 2, lane / 16));
                ldmatrix_x4(a[1], queries + QueryTile::at(at, (k - HELD) * 2, 2 + lane / 16));
                add_scores<W, D>(scores, a, own_keys, k);
            }
            if constexpr (KEY_STEPS % 2) {
                unsigned a[1][4];
                ldmatrix_x4(a[0], queries + QueryTile::at(at, KEY_STEPS * 2 - 2, lane / 16));
                add_scores<W, D>(scores, a, own_keys, KEY_STEPS - 1);
            }

            // The largest of each row, over all warps that have a part of it.
            int row = row_group * 16 + group, seen[2] = {visible_to(row), visible_to(row + 8)};
            float largest[2] = {LOWEST, LOWEST};
#pragma unroll
            for (int n = 0; n < SCORE_TILES; n++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    bool hidden = first + key + n * 8 + pair + j % 2 >= seen[j / 2];
                    scores[n][j] = hidden ? LOWEST : scores[n][j] * s.scale;
                    largest[j / 2] = fmaxf(largest[j / 2], scores[n][j]);
                }
#pragma unroll
            for (int half = 0; half < 2; half++) {
                largest[half] = fmaxf(largest[half], __shfl_xor_sync(~0u, largest[half], 1));
                largest[half] = fmaxf(largest[half], __shfl_xor_sync(~0u, largest[half], 2));
            }
            if constexpr (KEY_GROUPS > 1) {
                if (pair == 0) {
                    maxima[key_group * M + row] = largest[0];
                    maxima[key_group * M + row + 8] = largest[1];
                }
                __syncthreads();
#pragma unroll
                for (int other = 0; other < KEY_GROUPS; other++) {
                    largest[0] = fmaxf(largest[0], maxima[other * M + row]);
                    largest[1] = fmaxf(largest[1], maxima[other * M + row + 8]);
                }
            }
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
                        bool hidden = first + key + n * 8 + pair + j >= seen[half];
                        w[j] = hidden ? 0.0f : fast_exp2(scores[n][half * 2 + j] - after);
                    }
                    store_vec(weights + ((row + half * 8) * Tile<72>::STRIDE + key + n * 8 + pair), Float<W>::pack(w[0], w[1]));
                }
            }
            parity ^= 1;
            __syncthreads();

            // Sums: all rows and some columns for each warp.
#pragma unroll
            for (int g = 0; g < ROW_GROUPS; g++) {
                float keep[2] = {shrink[g * 16 + group], shrink[g * 16 + group + 8]};
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    if (g == row_group) sums[j] *= keep[j / 2];
#pragma unroll
                    for (int i = 0; i < PAIRS_EACH; i++) acc[g][i][0][j] *= keep[j / 2], acc[g][i][1][j] *= keep[j / 2];
                }
            }
#pragma unroll
            for (int k = 0; k < KEYS / 16; k++) {
                unsigned a[ROW_GROUPS][4], b[4];
#pragma unroll
                for (int g = 0; g < ROW_GROUPS; g++) {
                    ldmatrix_x4(a[g], weights + ((g * 16 + lane % 16) * Tile<72>::STRIDE + k * 16 + lane / 16 * 8));
                    if (g == row_group) Float<W>::mma(sums, a[g], One<W>::PAIR, One<W>::PAIR);
                }
#pragma unroll
                for (int i = 0; i < PAIRS_EACH; i++) {
                    int columns = warp + i * WARPS;
                    if (PAIRS % WARPS && columns >= PAIRS) break;
                    ldmatrix_x4_trans(b, value_tile + (ValueTile::at(lane / 8 % 2 * 8 + lane % 8, warp * 2 + lane / 16) +
                                                       k * 16 * ValueTile::STRIDE + i * WARPS * 16));
#pragma unroll
                    for (int g = 0; g < ROW_GROUPS; g++) {
                        Float<W>::mma(acc[g][i][0], a[g], b[0], b[1]);
                        Float<W>::mma(acc[g][i][1], a[g], b[2], b[3]);
                    }
                }
            }

            int end = first + KEYS;
            if (tile + 1 < num_tiles && end % unit.range_len) continue;
            // The end of a range.
            bool is_first = end - KEYS < unit.range_len || unit.slot >= 0, is_last = tile + 1 == num_tiles;
            if (key_group == 0 && pair == 0) maxima[row] = sums[0], maxima[row + 8] = sums[2];
            __syncthreads();
            // Sums of earlier ranges, each thread its own: for each row maximum and sum, for each column the values.
            Ptr<float> total = scratch + ((long long)blockIdx.x * THREADS + thread) * (ROW_GROUPS * (4 + PAIRS_EACH * 8));
#pragma unroll
            for (int g = 0; g < ROW_GROUPS; g++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    int of = g * 16 + group + half * 8, token = of / s.block_heads, head = of % s.block_heads;
                    bool there = token < unit.num_tokens && head < num_heads;
                    float max = row_max[parity * M + of], sum = maxima[of];
                    Ptr<float> mine = total + (g * 2 + half) * (2 + PAIRS_EACH * 4);
                    // A row that sees nothing of this range stays as it is.
                    bool keeps = !is_first && sum == 0;
                    Merge m = Merge{max, 0.0f, 1.0f};
                    if (!is_first) {
                        m = merge_of(mine[0], max);
                        sum = keeps ? (float)mine[1] : merged(m, mine[1], sum);
                    }
                    if (!is_last) mine[0] = m.max, mine[1] = sum;
                    long long to = ((long long)(unit.first_token + token) * s.heads + first_head + head) * s.dv;
                    if (unit.slot >= 0) to = s.partials + ((long long)(unit.slot + token) * s.heads + first_head + head) * s.dv;
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
                                if (unit.slot < 0) store_vec(out + to + column, make_float2(v.x / sum, v.y / sum));
                                else store_vec(scratch + to + column, v);
                            }
                        }
                    if (unit.slot >= 0 && there && warp == 0 && pair == 0)
                        store_vec(scratch + (s.maxima + ((long long)(unit.slot + token) * s.heads + first_head + head) * 2), make_float2(max, sum));
                }
            if (is_last) continue;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                sums[j] = 0;
#pragma unroll
                for (int g = 0; g < ROW_GROUPS; g++)
#pragma unroll
                    for (int i = 0; i < PAIRS_EACH; i++) acc[g][i][0][j] = 0, acc[g][i][1][j] = 0;
                }
            __syncthreads();
            if (thread < M) row_max[parity * M + thread] = LOWEST;
        }
    }
}

constexpr int COMBINE_THREADS = 128;

// A token whose ranges were computed by different units: result r is in slot + r · stride.
//   [token, num_ranges, slot, stride]
// grid: any; each block takes every gridDim-th row
__global__ void __launch_bounds__(COMBINE_THREADS) attention_combine(In<int> work, In<float> scratch, AttendShape s, Out<float> out) {
    int begin = work[4], tokens = work[5];
    for (int index = (int)blockIdx.x; index < tokens * s.heads; index += (int)gridDim.x) {
        int4 split = load_vec<int4>(work + begin + index / s.heads * 4);
        int head = index % s.heads;
        auto place = [&](int range) { return (long long)(split.z + range * split.w) * s.heads + head; };
        for (int c = (int)threadIdx.x * 2; c < s.dv; c += COMBINE_THREADS * 2) {
            float2 first = load_vec<float2>(scratch + (s.maxima + place(0) * 2)), v = load_vec<float2>(scratch + (s.partials + place(0) * s.dv + c));
            float max = first.x, sum = first.y;
            for (int range = 1; range < split.y; range++) {
                float2 next = load_vec<float2>(scratch + (s.maxima + place(range) * 2));
                float2 more = load_vec<float2>(scratch + (s.partials + place(range) * s.dv + c));
                Merge m = merge_of(max, next.x);
                max = m.max;
                sum = merged(m, sum, next.y);
                v = make_float2(merged(m, v.x, more.x), merged(m, v.y, more.y));
            }
            store_vec(out + (((long long)split.x * s.heads + head) * s.dv + c), make_float2(v.x / sum, v.y / sum));
        }
    }
}
