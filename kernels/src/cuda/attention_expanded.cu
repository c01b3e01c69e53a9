// attend_expanded: out[t, h] = Σ_p softmax_p(scale · q[t, h] · key[p, h]) value[p, h], where key[p, h] = [key_up[h] · latent[p] | rotated[p]] and
// value[p, h] = value_up[h] · latent[p] were made of cached latents
// q [T, H, N + P] f32, rounded to W · cache [S, R + P] C in pages · out [T, H, V] f32 · sums in f32
// 2·(N + P + V) FLOP for each row, head and key, 2·R·(N + V) for each key and head; moves for each key and head 2·(N + P + V) bytes into
// the workspace, and out of it once for each block of rows; for each row, head and range 16·V bytes of sums
// not measured: no GPU was available
//
// A pass fills the workspace with keys and values of ranges of one or more items, and attends to them (attention_expanded.rs):
//
//   gather            rotated parts of keys, to every head; for `attend_expanded_rows` also latents, in f32
//   expand            products of latents, read in place, with key_up and value_up, rounded to C
//   attend_expanded   one range for up to M tokens of a head: begins with empty sums, merged with those of earlier ranges, which lie in `out`; the
//                     last leaves the result there, or rounded for a linear layer (tokens.cuh), or both
//   attend_expanded_rows   the same for any widths in f32: a warp has one row
//
// Ranges lie at absolute positions and are merged from first to last, and an expanded key is one row of a product: a row's bits depend on its
// own position alone.
#include "attention.cuh"
#include "attention_rows.cuh"
#include "gemm.cuh"

// Keys of an item, as attention_expanded_plan.rs writes them.
struct Segment {
    int table;  // first block in block_tables
    int first, count;  // positions
    int row;    // of the workspace, a multiple of MANY_TOKENS
};

struct ExpandShape {
    int block_size, row_len, rank, rotated;  // of the cache
    int segments, num_segments;              // where they begin in the lists
    int heads, key_row, key_head;            // of keys: elements from one row, and from one head to the next
    int n, panels, units;                    // of one head of the weights
    int out_row, out_head;
    int pairs;                               // of the cache, see Row
};

// Where a row of the workspace comes from; -1: it is nobody's.
__device__ __forceinline__ int slot_of(Ptr<const int> tables, Ptr<const int> work, int row, const ExpandShape& s) {
    for (int i = 0; i < s.num_segments; i++) {
        int4 v = load_vec<int4>(work + (s.segments + i * 4));
        Segment segment{v.x, v.y, v.z, v.w};
        int place = row - segment.row, position = segment.first + place;
        if (place >= 0 && place < segment.count)
            return tables[segment.table + position / s.block_size] * s.block_size + position % s.block_size;
    }
    return -1;
}

constexpr int GATHER_THREADS = 128;

// grid: a block for each row of the workspace
template <class C, class O>
__global__ void __launch_bounds__(GATHER_THREADS)
    gather(In<C> cache, In<int> tables, In<int> work, ExpandShape s, Out<O> keys, Out<float> latents) {
    int row = (int)blockIdx.x, slot = slot_of(tables, work, row, s), nope = s.key_row - s.rotated;
    Ptr<const C> from = cache + (long long)(slot < 0 ? 0 : slot) * s.row_len;
    for (int i = (int)threadIdx.x; i < s.heads * s.rotated; i += GATHER_THREADS) {
        int head = i / s.rotated, column = i % s.rotated;
        float v = 0;
        if (slot >= 0) {
            C kept = from[s.rank + column];
            v = to_float(kept);
        }
        keys[(long long)head * s.key_head + (long long)row * s.key_row + nope + column] = Float<O>::from(v);
    }
    if (latents == nullptr) return;
    for (int i = (int)threadIdx.x; i < s.rank; i += GATHER_THREADS) {
        float v = 0;
        if (slot >= 0) {
            C kept = from[i];
            v = to_float(kept);
        }
        latents[(long long)row * s.rank + i] = v;
    }
}

// grid: (panels / 4, rows of the workspace / 64, heads), 256 threads
template <class C, class W>
__global__ void __launch_bounds__(256, 1) expand(In<C> cache, In<int> tables, In<int> work, In<W> w, ExpandShape s, Out<C> out) {
    ManyBlock<64> at = many_block<64>();
    int slot = slot_of(tables, work, at.first_token + (int)threadIdx.x / 4, s);
    RowTokens<typename Weights<W>::Taken, C, 64> latent;
    latent.rows[0] = Row<C>{cache + (long long)(slot < 0 ? 0 : slot) * s.row_len, slot >= 0, s.rank, s.pairs};
    float total[2][4][4] = {};
    multiply_many<false, 64>(total, w + at.template panel<W>(s.panels, s.units), s.panels - at.first_panel, s.units, latent, 64);
    at.each([&](int half, int i, int j, int column, int row) {
        // Rows of the workspace that are nobody's are zeros, which nobody reads.
        if (column < s.n) out[(long long)at.head * s.out_head + (long long)row * s.out_row + column] = Float<C>::from(total[half][i][j]);
    });
}

// grid: units · heads; units of one head follow each other, so that its keys are read from the second cache
template <class W, int D, int DV, int M, int WARPS, int STAGES>
__global__ void __launch_bounds__(WARPS * 32, 1)
    attend_expanded(In<float> q, In<W> keys, In<W> values, In<int> work, int units, AttendShape s, Out<float> stats, Out<float> out,
                    Out<W> packed) {
    static_assert(STAGES > 1, "the next tile is on its way while one is worked on");
    DYNAMIC_SHARED(W, memory);
    Block<W, D, DV, M, WARPS, STAGES, false> block;
    block.q = q, block.keys = keys, block.values = values, block.scratch = stats, block.out = out, block.packed = packed;
    block.begin(memory);
    block.take(load_unit(work, s.list + (int)blockIdx.x % units), (int)blockIdx.x / units, s);
    int range_len = block.unit.range_len, first_key = block.unit.first_range * range_len;
    int num_tiles = (block.end_key - first_key + KEYS - 1) / KEYS;
    block.begin_tiles(first_key, num_tiles, s);
    for (int tile = 0; tile < num_tiles; tile++) block.add_tile(tile, first_key + tile * KEYS, num_tiles, s);
    block.end_only_range(block.unit.first_range == 0, block.unit.slot > 0, s);
}

constexpr int ROW_WARPS = 4;

// grid: (units, tokens of a unit · heads / 4), 128 threads
__global__ void __launch_bounds__(ROW_WARPS * 32)
    attend_expanded_rows(In<float> q, In<float> keys, In<float> values, In<int> work, AttendShape s, Out<float> stats, Out<float> out) {
    SHARED(float, weights, ROW_WARPS * 32);
    Unit unit = load_unit(work, s.list + (int)blockIdx.x);
    int row = (int)blockIdx.y * ROW_WARPS + warp_id(), token = row / s.heads, head = row % s.heads, lane = lane_id(), mine = warp_id() * 32;
    if (token >= unit.num_tokens) return;
    int begin = unit.first_range * unit.range_len, end = min(unit.first_visible + token, unit.end_range * unit.range_len);
    Ptr<const float> query = q + ((long long)(unit.first_token + token) * s.q_stride + (long long)head * s.d);
    Ptr<const float> head_keys = keys + (long long)head * s.key_head, head_values = values + (long long)head * s.value_head;

    RowSums sums;
    for (int first = begin; first < end; first += 32) {
        bool is_there = first + lane < end;
        float score = LOWEST;
        if (is_there) score = dot(query, head_keys + (long long)(unit.table + first + lane) * s.key_stride, s.d) * s.scale;
        weights[mine + lane] = sums.weigh(score, is_there);
        __syncwarp();
        int count = min(32, end - first);
        for (int k = 0; k < count; k++)
            sums.add(weights[mine + k], head_values + (long long)(unit.table + first + k) * s.value_stride, s.dv);
        // The next tile writes over these.
        __syncwarp();
    }
    long long place = (long long)(unit.first_token + token) * s.heads + head;
    bool is_last = unit.slot > 0;
    float sum = sums.sum;
    Merge m = Merge{sums.max, 0.0f, 1.0f};
    if (unit.first_range) {
        float2 old = load_vec<float2>(stats + place * 2);
        m = merge_of(old.x, sums.max);
        sum = merged(m, old.y, sum);
    }
#pragma unroll
    for (int i = 0; i < MAX_COLUMNS; i++)
        if (i * 32 + lane < s.dv) {
            Ptr<float> at = out + (place * s.dv + i * 32 + lane);
            float v = sums.values[i];
            if (unit.first_range) v = merged(m, *at, v);
            *at = is_last ? v / sum : v;
        }
    // Every lane has read what was there.
    __syncwarp();
    if (!is_last && lane == 0) store_vec(stats + place * 2, make_float2(m.max, sum));
}
