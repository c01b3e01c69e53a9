// attend: out[t, h] = Σ_p softmax_p(scale · q[t, h] · k[p]) v[p], on tensor cores, over pages
// q f32, rounded to W · keys, values W (bf16, f16) in pages · out f32, or rounded to W for a linear layer (tokens.cuh), or both · sums in f32
// moves 2·(D + DV) bytes for each key and block of rows (LATENT: 2·D); 2·(D + DV) FLOP for each row and key
// not measured: no GPU was available
//
// A unit of work is up to M rows (tokens x heads that share a key head) and some ranges of their keys. Who makes the list of units
// (attention_plan.rs) may cut the work as it likes, because what a row gets depends on what it sees alone:
//
//   tile    64 keys at absolute positions: scores on tensor cores, a running maximum, weights rounded to W, sums on tensor cores
//   window  a row sees so many of the last keys at most: tiles in which no row of a unit sees anything are left out, and those in which a row
//           sees nothing leave its sums as they are
//   sink    of a head: one more weight in the sum of each row, without a value
//   range   512 keys or more, by how many keys the row sees, cut at absolute positions: begins with empty sums
//   row     its ranges merged from first to last: by the block that computes them, through global memory, or by attention_combine
//
// keys [64, D] . queries [M, D] -> scores, warps side by side along rows, then keys -> weights [M, 64] in shared memory
// weights [M, 64] . values [64, DV] -> sums, warps side by side along DV; sums of weights are products with ones
#include "attention.cuh"

// grid: as many blocks as the device holds at once; each takes every gridDim-th unit of work
template <class W, int D, int DV, int M, int WARPS, int STAGES, bool LATENT>
__global__ void __launch_bounds__(WARPS * 32, 1)
    attend(In<float> q, In<W> keys, In<W> values, In<int> tables, In<int> work, In<float> sinks, AttendShape s, Out<float> scratch, Out<float> out,
           Out<W> packed) {
    DYNAMIC_SHARED(W, memory);
    Block<W, D, DV, M, WARPS, STAGES, LATENT> block;
    block.q = q, block.keys = keys, block.values = values, block.tables = tables, block.scratch = scratch, block.out = out, block.packed = packed;
    if constexpr (!LATENT) block.sinks = sinks;
    block.begin(memory);
    int begin = work[2 * s.list], units = work[2 * s.list + 1] - begin, groups = s.heads / s.rep * s.head_blocks;
    for (int index = (int)blockIdx.x; index < units * groups; index += (int)gridDim.x) {
        block.take(load_unit(work, begin + index / groups), index % groups, s);
        int range_len = block.unit.range_len, first_key = block.begin_key(s);
        int num_tiles = (block.end_key - first_key + KEYS - 1) / KEYS;
        // Nobody reads the last unit's shared memory any more.
        __syncthreads();
        block.begin_tiles(first_key, num_tiles, s);
        for (int tile = 0; tile < num_tiles; tile++) {
            int first = first_key + tile * KEYS;
            block.add_tile(tile, first, num_tiles, s);
            if (tile + 1 < num_tiles && (first + KEYS) % range_len) continue;
            // Without a window, all begin with the first range.
            int first_end = LATENT ? range_len : (block.unit.first_range + 1) * range_len;
            block.end_range(first < first_end || block.unit.slot >= 0, tile + 1 == num_tiles, s);
        }
    }
}

constexpr int COMBINE_THREADS = 128;

// A token whose ranges were computed by different units: result r is in slot + r · stride.
//   [token, num_ranges, slot, stride]
// grid: any; each block takes every gridDim-th row
template <class W>
__global__ void __launch_bounds__(COMBINE_THREADS) attention_combine(In<int> work, In<float> scratch, In<float> sinks, AttendShape s, Out<float> out, Out<W> packed) {
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
                // A row whose window begins after the first range of its unit has nothing of it.
                bool begins = sum == 0;
                sum = begins ? next.y : merged(m, sum, next.y);
                v = begins ? more : make_float2(merged(m, v.x, more.x), merged(m, v.y, more.y));
            }
            float times = 1, by = sum;
            if (sinks != nullptr) {
                Merge sink = with_sink(max, sinks[head]);
                times = sink.keep, by = fmaf(sum, sink.keep, sink.take);
            }
            Result<W>::at(out, packed, split.x, head, c, s).store(0, make_float2(v.x * times / by, v.y * times / by));
        }
    }
}
