// moe: out[t, :] = Σ_j weights[t, j] · down_e (silu(gate_e x[t]) · up_e x[t]),  e = ids[t, j], summed in the order of j
//      + down (silu(gate x[t]) · up x[t]), of the expert that every token takes, if it is computed beside the others; times sigmoid(g[t]) if it is gated
//      of experts with biases: gate, up and down with theirs, and (u + 1) · g · sigmoid(alpha · g) of both, clamped, in place of silu(gate) · up
// x, out [T, H] f32 (moe_many: x as tensor cores take it) · ids [T, k] i32 · weights [T, k] f32 · experts bf16 or f16 in fragment order (pack.rs), or f32
// 6·T·k·H·I FLOP; moves the weights of the distinct experts once for each block of tokens; not measured: no GPU was available
//
//   moe_place     a block has one expert: its pairs (token, choice) get neighbouring rows, in the order of the pairs. Up to 32 pairs are not
//                 sorted where moe_few has one tile: each lane of its warps knows one, and a pair has the row of its number
//   moe_few       as linear_few, for the rows of one expert; UP: 16 rows of gate and the same of up, out = silu(gate) · up
//                 the first rows of the grid may have the expert of all tokens, whose sums are those of linear_few
//   moe_many      as linear_many; x is rounded before, and what is between the layers when it is written: to what tensor cores take anyway
//   moe_pack      rounds the rows of x to 16 bits, in the order of the experts, for moe_wgmma
//   moe_spread    the same of tokens that a norm left rounded and packed: each is read once, and goes to all of its rows
//   moe_unpack    of such tokens, x as moe_many takes it
//   moe_wgmma     as linear_wgmma, of which only tokens are shared; a warpgroup has as many rows of gate as of up
//   moe_f32       as linear_f32
//   moe_enter     the tokens of the rows, where the layer is computed in steps: then rows are read as they are (UP false), of both products
//   moe_combine   a block has one token; moe_combine_norm goes on to the norm of the stream
//
// Nobody on the host knows how many rows an expert has. The grid has room for the worst case, each block finds the expert and the
// rows that are its work from `starts`, and the blocks that are left over end. Sums are made as gemm.cuh says, whichever kernel.
#include "norm.cuh"
#include "wgmma.cuh"

struct MoeShape {
    int experts, top_k;
    int n, k;           // outputs and inputs of the layer
    int panels, units;  // of 32 rows and along K, in one expert; with UP panels of gate and up take turns
    int pairs;          // of x: 8: every eighth element of a row begins 16 aligned bytes; 1: every even one an aligned pair
    int unsorted;       // pairs (token, choice), at most 32, whose ids take the place of `order`; 0: they are sorted
    float alpha, limit; // of experts with biases
};

// The expert that every token takes: its rows are the tokens, and gate and up are one matrix.
struct SharedShape {
    int blocks;         // rows of the grid that are its work; 0: it is not computed here
    int tokens;
    int n, k, units;    // as above
    int side_panels;    // from a panel of gate to that of up
    int pairs;
};

// What is made of gate and up of a column of an expert. bias [experts, panels · 32], in turns as panels are, or none: then silu(gate) · up.
__device__ __forceinline__ float gated(float gate, float up, Ptr<const float> bias, int expert, int column, const MoeShape& s) {
    if (bias == nullptr) return silu(gate) * up;
    Ptr<const float> at = bias + (((long long)expert * s.panels + column / 32 * 2) * 32 + column % 32);
    gate = fminf(gate + at[0], s.limit);
    up = fminf(fmaxf(up + at[32], -s.limit), s.limit);
    return (up + 1.0f) * (gate / (1.0f + expf(-s.alpha * gate)));
}

// Levels with zeros leave no register for biases, and no family has both.
template <class W> struct MayHaveBias {
    static constexpr bool VALUE = true;
};
template <> struct MayHaveBias<q4z> {
    static constexpr bool VALUE = false;
};
template <class W> __device__ __forceinline__ Ptr<const float> bias_of(Ptr<const float> bias) {
    if constexpr (MayHaveBias<W>::VALUE) return bias;
    else return Ptr<const float>(nullptr);
}

// A column that is not gated; bias [experts, n], or none.
__device__ __forceinline__ float biased(float v, Ptr<const float> bias, int expert, int column, const MoeShape& s) {
    return bias == nullptr ? v : v + bias[(long long)expert * s.n + column];
}

constexpr int PLACE_THREADS = 256;

// starts [E + 1]: where the rows of each expert begin · places [pairs]: the row of a pair · order [pairs]: the pair of a row
__global__ void __launch_bounds__(PLACE_THREADS)
    moe_place(In<int> ids, int pairs, Out<int> starts, Out<int> places, Out<int> order) {
    constexpr int WARPS = PLACE_THREADS / 32;
    SHARED(int, counts, 2 * WARPS);
    int expert = (int)blockIdx.x, thread = (int)threadIdx.x, lane = lane_id(), warp = warp_id();
    int below = 0;
    for (int i = thread; i < pairs; i += PLACE_THREADS) {
        int id = ids[i];
        below += id < expert;
    }
    below = __reduce_add_sync(~0u, below);
    if (lane == 0) counts[WARPS + warp] = below;
    __syncthreads();
    int next = 0;
    for (int w = 0; w < WARPS; w++) next += counts[WARPS + w];
    if (thread == 0) starts[expert] = next;
    for (int first = 0, round = 0; first < pairs; first += PLACE_THREADS, round ^= 1) {
        int i = first + thread, id = -1;
        if (i < pairs) id = ids[i];
        unsigned mine = __ballot_sync(~0u, id == expert);
        // The other half is read until the next barrier.
        if (lane == 0) counts[round * WARPS + warp] = __popc(mine);
        __syncthreads();
        int before = 0, all = 0;
        for (int w = 0; w < WARPS; w++) {
            int count = counts[round * WARPS + w];
            before += w < warp ? count : 0;
            all += count;
        }
        if (id == expert) {
            int row = next + before + __popc(mine & ((1u << lane) - 1));
            places[i] = row;
            order[row] = i;
        }
        next += all;
    }
    if (thread == 0 && expert + 1 == (int)gridDim.x) starts[expert + 1] = next;
}

// Rows `first .. end` of an expert, at most TILE of them; expert -1: nothing.
struct Work {
    int expert, first, end;
};

// The work of the block with this index; each warp finds it by itself.
template <int TILE> __device__ __forceinline__ Work find_work(Ptr<const int> starts, int experts, int index) {
    int lane = lane_id();
    for (int base = 0; base < experts; base += 32) {
        int begin = 0, end = 0, expert = base + lane;
        if (expert < experts) begin = starts[expert], end = starts[expert + 1];
        int blocks = (end - begin + TILE - 1) / TILE, sum = blocks;
        for (int step = 1; step < 32; step *= 2) {
            int left = __shfl_up_sync(~0u, sum, step);
            if (lane >= step) sum += left;
        }
        unsigned found = __ballot_sync(~0u, index < sum);
        if (found) {
            int lane_of = __ffs((int)found) - 1;
            int first = __shfl_sync(~0u, begin + (index - (sum - blocks)) * TILE, lane_of);
            end = __shfl_sync(~0u, end, lane_of);
            return Work{base + lane_of, first, min(end, first + TILE)};
        }
        index -= __shfl_sync(~0u, sum, 31);
    }
    return Work{-1, 0, 0};
}

// The work of the block with this index where pairs are not sorted: up to TILE of those that have its own pair's expert, from that one on. Rows are
// numbers of bits of `chosen`.
template <int TILE> __device__ __forceinline__ Work find_pairs(Ptr<const int> ids, int pairs, int index, unsigned& chosen) {
    int id = -1;
    if (lane_id() < pairs) id = ids[lane_id()];
    int expert = __shfl_sync(~0u, id, index);
    chosen = __ballot_sync(~0u, id == expert);
    int before = __popc(chosen & ((1u << index) - 1));
    return Work{before % TILE == 0 ? expert : -1, before, min(__popc(chosen), before + TILE)};
}

// The place of set bit n.
__device__ __forceinline__ int place_of_bit(unsigned bits, int n) {
    for (; n > 0; n--) bits &= bits - 1;
    return __ffs((int)bits) - 1;
}

// UP: a row belongs to a pair, whose token is read. Else a row is read.
template <bool UP> __device__ __forceinline__ int source_of(Ptr<const int> order, int row, int top_k) {
    if (!UP) return row;
    int pair = order[row];
    return pair / top_k;
}

// grid: (UP: panels, else 2 · panels; shared.blocks, then blocks of 8 · TILES rows), 256 threads
template <class W, int TILES, bool UP>
__global__ void __launch_bounds__(RANGES * 32, UP || (Weights<W>::SCALES && TILES == 4) ? 2 : 3)
    moe_few(In<float> x, In<W> w, In<int> starts, In<int> order, In<float> bias, MoeShape s, Out<float> out, In<float> shared_x, In<W> shared_w,
            SharedShape shared, Out<float> shared_out) {
    constexpr int SIDES = UP ? 2 : 1, SIZE = 16 * 8 * TILES;
    SHARED(float, partial, SIDES * RANGES * SIZE);
    bool is_shared = (int)blockIdx.y < shared.blocks;
    int index = (int)blockIdx.x + (is_shared ? (int)(blockIdx.y * gridDim.x) : 0), unit = index / 2, half = index % 2;
    Work work{0, 0, shared.tokens};
    unsigned chosen = 0;
    if (!is_shared) {
        int block = (int)blockIdx.y - shared.blocks;
        if (TILES == 1 && s.unsorted) work = find_pairs<8>(order, s.unsorted, block, chosen);
        else work = find_work<8 * TILES>(starts, s.experts, block);
    }
    auto place = [&](int row) { return TILES == 1 && chosen ? place_of_bit(chosen, row) : row; };
    int n = is_shared ? shared.n : s.n, k = is_shared ? shared.k : s.k, units = is_shared ? shared.units : s.units;
    if (work.expert < 0 || unit * 32 >= n) return;
    long long panel_len = (long long)units * Weights<W>::LEN, side_len = is_shared ? shared.side_panels * panel_len : panel_len;
    Ptr<const W> panel = is_shared ? shared_w + unit * panel_len : w + ((long long)work.expert * s.panels + unit * SIDES) * panel_len;
    Source<float> from{is_shared ? shared_x : x, k, k, is_shared ? shared.pairs : s.pairs};
    int source[TILES];
#pragma unroll
    for (int i = 0; i < TILES; i++) {
        int row = work.first + i * 8 + lane_id() / 4;
        source[i] = -1;
        if (row >= work.end) continue;
        if (is_shared) source[i] = row;
        else if (TILES == 1 && chosen) source[i] = UP ? place(row) / s.top_k : place(row);
        else source[i] = source_of<UP>(order, row, s.top_k);
    }
    float acc[SIDES][TILES][4] = {};
    multiply_few<2>(acc, panel, side_len, half, units, from, source);
    store_partial(partial, acc);
    __syncthreads();
    Ptr<float> to = is_shared ? shared_out : out;
    // Kept until now it would take a register that the widest blocks do not have.
    Ptr<const float> biases = bias_of<W>(bias);
    int expert = TILES < 4 ? work.expert : 0;
    if (TILES == 4 && biases != nullptr) expert = find_work<8 * TILES>(starts, s.experts, (int)blockIdx.y - shared.blocks).expert;
    for (int i = (int)threadIdx.x; i < SIZE; i += RANGES * 32) {
        int column = unit * 32 + half * 16 + i % 16, row = work.first + i / 16;
        if (column >= n || row >= work.end) continue;
        float v = sum_ranges<TILES>(partial, 0, i);
        if (UP) v = gated(v, sum_ranges<TILES>(partial, 1, i), biases, expert, column, s);
        else v = biased(v, biases, expert, column, s);
        to[(long long)place(row) * n + column] = v;
    }
}

// What is between the two layers, in the type that the second one takes.
template <class W, bool UP> struct Made {
    using Type = float;
};
template <class W> struct Made<W, true> {
    using Type = typename Weights<W>::Taken;
};

// grid: (panels / 4, blocks of TOKENS rows), 256 threads
template <class W, int TOKENS, bool UP>
__global__ void __launch_bounds__(256, many_blocks<W>(TOKENS))
    moe_many(In<typename Weights<W>::Taken> x, In<W> w, In<int> starts, In<int> order, In<float> bias, MoeShape s,
             Out<typename Made<W, UP>::Type> out) {
    using Taken = typename Weights<W>::Taken;
    Work work = find_work<TOKENS>(starts, s.experts, (int)blockIdx.y);
    if (work.expert < 0) return;
    int lane = lane_id(), warp_m = warp_id() % 4, warp_n = warp_id() / 4, first_panel = (int)blockIdx.x * MANY_PANELS;
    RowTokens<Taken, Taken, TOKENS> from;
#pragma unroll
    for (int i = 0; i < TOKENS / 64; i++) {
        int loaded = work.first + i * 64 + (int)threadIdx.x / 4;
        int source = loaded < work.end ? source_of<UP>(order, loaded, s.top_k) : -1;
        from.rows[i] = Row<Taken>{x + (long long)max(source, 0) * s.k, source >= 0, s.k, s.pairs};
    }
    long long panel = ((long long)work.expert * s.panels + first_panel) * s.units * Weights<W>::LEN;
    float total[2][TOKENS / 16][4] = {};
    multiply_many<UP, TOKENS>(total, w + panel, s.panels - first_panel, s.units, from, work.end - work.first);
#pragma unroll
    for (int half = 0; half < (UP ? 1 : 2); half++)
#pragma unroll
        for (int i = 0; i < TOKENS / 16; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int block = UP ? first_panel / 2 * 2 + warp_m : (first_panel + warp_m) * 2 + half;
                int column = block * 16 + lane / 4 + j / 2 * 8;
                int row = work.first + warp_n * (TOKENS / 2) + i * 8 + lane % 4 * 2 + j % 2;
                if (column >= s.n || row >= work.end) continue;
                float v = UP ? gated(total[0][i][j], total[1][i][j], bias_of<W>(bias), work.expert, column, s)
                             : biased(total[half][i][j], bias_of<W>(bias), work.expert, column, s);
                out[(long long)row * s.n + column] = Float<typename Made<W, UP>::Type>::from(v);
            }
}

// packed [rows, K]: x of each row's pair as tensor cores take it, in the order of tokens.cuh, zeros from `pairs` on
// grid: (rows / 8, columns / 32), 256 threads; a warp has 8 rows and 4 columns. N = 4 where K % 4 == 0, else 1
template <class T, int N>
__global__ void __launch_bounds__(256) moe_pack(In<float> x, In<int> order, int pairs, int top_k, int k, Out<T> packed) {
    int lane = lane_id(), row = (int)blockIdx.x * 8 + lane / 4, first = ((int)blockIdx.y * 8 + warp_id()) * 4 + lane % 4, columns = packed_columns(k);
    if (first >= columns) return;
    float v[8] = {};
    if (row < pairs) {
        Ptr<const float> from = x + (long long)source_of<true>(order, row, top_k) * k;
#pragma unroll
        for (int i = 0; i < 8; i += N) {
            if (first * 8 + i >= k) continue;
            float part[N];
            Wide<N>::load(from + (first * 8 + i), part);
#pragma unroll
            for (int j = 0; j < N; j++) v[i + j] = part[j];
        }
    }
    using F = Float<T>;
    store_vec(packed + packed_place(row, first, columns), make_uint4(F::pack(v[0], v[1]), F::pack(v[2], v[3]), F::pack(v[4], v[5]), F::pack(v[6], v[7])));
}

constexpr int SPREAD_COLUMNS = 2, SPREAD_TOKENS = 2048;   // of eight; at a time

// packed [rows, K], as moe_pack leaves it, of tokens [T, K] in the order of tokens.cuh. Rows from `pairs` on stay as they are
// grid: columns / 2, 256 threads; shared memory for the columns of so many tokens. A warp writes whole lines
template <class T>
__global__ void __launch_bounds__(256) moe_spread(In<T> tokens, In<int> order, int num_tokens, int pairs, int top_k, int columns, Out<T> packed) {
    DYNAMIC_SHARED(T, held);
    int first_column = (int)blockIdx.x * SPREAD_COLUMNS, room = min(num_tokens, SPREAD_TOKENS);
    for (int first = 0; first < num_tokens; first += SPREAD_TOKENS) {
        int count = min(num_tokens - first, SPREAD_TOKENS);
        // Nobody reads the tokens before any more.
        __syncthreads();
        for (int i = (int)threadIdx.x; i < count; i += 256)
#pragma unroll
            for (int c = 0; c < SPREAD_COLUMNS; c++)
                cp_async16(held + (c * room + i) * 8, tokens + packed_place(first + i, first_column + c, columns), 16);
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();
        for (int row = (int)threadIdx.x; row < pairs; row += 256) {
            int token = source_of<true>(order, row, top_k) - first;
            if (token < 0 || token >= count) continue;
#pragma unroll
            for (int c = 0; c < SPREAD_COLUMNS; c++)
                store_vec(packed + packed_place(row, first_column + c, columns), load_vec<uint4>(held + (c * room + token) * 8));
        }
    }
}

// rows [T, K] of tokens in the order of tokens.cuh. grid: (tokens / 8, columns / 32), 256 threads, as moe_pack
template <class T, int N> __global__ void __launch_bounds__(256) moe_unpack(In<T> tokens, int num_tokens, int k, Out<T> rows) {
    int lane = lane_id(), token = (int)blockIdx.x * 8 + lane / 4, column = ((int)blockIdx.y * 8 + warp_id()) * 4 + lane % 4;
    if (token >= num_tokens || column * 8 >= k) return;
    Ptr<const T> from = tokens + packed_place(token, column, packed_columns(k));
    Ptr<T> to = rows + ((long long)token * k + column * 8);
#pragma unroll
    for (int i = 0; i < 8; i += N) {
        if (column * 8 + i >= k) continue;
        float part[N];
        Wide<N>::load(from + i, part);
        Wide<N>::store(to + i, part);
    }
}

// out[row, :] = x[token of its pair, :]     grid: pairs; N = 4 where the width % 4 == 0, else 1
template <int N>
__global__ void __launch_bounds__(256) moe_enter(In<float> x, In<int> order, int top_k, int width, Out<float> out) {
    int row = (int)blockIdx.x;
    Ptr<const float> from = x + (long long)source_of<true>(order, row, top_k) * width;
    for (int c = (int)threadIdx.x * N; c < width; c += 256 * N) {
        float v[N];
        Wide<N>::load(from + c, v);
        Wide<N>::store(out + ((long long)row * width + c), v);
    }
}

#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
// Rows between the layers that nobody wrote may be read: they are columns of their own of a product, and go nowhere.
// grid: (panels / 4, up to a multiple of ROWS; blocks of 192 rows), clusters of ROWS by one, 384 threads, a ring of stages; x and what is made of
// it by UP in the order of tokens.cuh, a row for each pair
template <class W, bool UP, int ROWS>
__global__ void __launch_bounds__(WGMMA_THREADS, 1)
    moe_wgmma(In<W> x, In<W> w, In<int> starts, In<float> bias, MoeShape s, Out<typename Made<W, UP>::Type> out) {
    Work work = find_work<CLUSTER_TOKENS>(starts, s.experts, (int)blockIdx.y);
    if (work.expert < 0) return;
    int first_panel = (int)blockIdx.x * CLUSTER_PANELS, panels = max(min(s.panels - first_panel, CLUSTER_PANELS), 0);
    int tokens = (work.end - work.first + 63) / 64 * 64;   // rows of others, or of nobody, are among the last
    Ptr<const W> panel = w + ((long long)work.expert * s.panels + first_panel) * s.units * Weights<W>::LEN;
    float total[CLUSTER_TOKENS / 8][4] = {};
    if (multiply_clusters(total, ClusterWork<W, ROWS, 1>{panel, x, panels, s.units, work.first, tokens, packed_columns(s.k)})) {
        int lane = lane_id(), warp = warp_id() - 4;
        auto row_of = [&](int j, int e) { return work.first + j * 8 + lane % 4 * 2 + e % 2; };
        int place = warp % 2 * 16 + lane / 4;
        if constexpr (UP) {
            // Gate and up of a column are two warps' of one group: each gives the other half of its tokens away.
            DYNAMIC_SHARED(float, exchange);
            constexpr int HALF = CLUSTER_TOKENS / 16;
            bool is_up = warp % 4 >= 2;
            int columns = packed_columns(s.n);
            // The stages are free once nobody reads them any more.
            barrier_sync(1, 256);
#pragma unroll
            for (int j = 0; j < HALF; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) exchange[(warp * HALF * 4 + j * 4 + e) * 32 + lane] = is_up ? total[j][e] : total[HALF + j][e];
            barrier_sync(1, 256);
#pragma unroll
            for (int j = 0; j < HALF; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    float other = exchange[((warp ^ 2) * HALF * 4 + j * 4 + e) * 32 + lane];
                    int column = (first_panel / 2 + warp / 4) * 32 + place + e / 2 * 8, row = row_of(is_up ? HALF + j : j, e);
                    if (column >= columns * 8 || row >= work.end) continue;
                    // Columns that fill up are of nobody, and stay zeros.
                    Ptr<const float> own = column < s.n ? bias : Ptr<const float>(nullptr);
                    float v = gated(is_up ? other : total[j][e], is_up ? total[HALF + j][e] : other, own, work.expert, column, s);
                    out[packed_place(row, column / 8, columns) + column % 8] = Float<W>::from(v);
                }
        } else {
#pragma unroll
            for (int j = 0; j < CLUSTER_TOKENS / 8; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    int column = (first_panel + warp / 2) * 32 + place + e / 2 * 8, row = row_of(j, e);
                    if (column < s.n && row < work.end) out[(long long)row * s.n + column] = biased(total[j][e], bias, work.expert, column, s);
                }
        }
    }
    cluster_wait();
}
#endif

constexpr int F32_WARPS = 4;
constexpr int F32_TOKENS = 8;

// grid: (n / 4, blocks of 8 rows), 128 threads: a warp has one column of out
template <bool UP>
__global__ void __launch_bounds__(F32_WARPS * 32)
    moe_f32(In<float> x, In<float> w, In<int> starts, In<int> order, In<float> bias, MoeShape s, Out<float> out) {
    constexpr int SIDES = UP ? 2 : 1;
    Work work = find_work<F32_TOKENS>(starts, s.experts, (int)blockIdx.y);
    int column = (int)blockIdx.x * F32_WARPS + warp_id();
    if (work.expert < 0 || column >= s.n) return;
    int width = s.units * 16;
    Ptr<const float> weights = w + (((long long)work.expert * s.panels + column / 32 * SIDES) * 32 + column % 32) * width;
    long long source[F32_TOKENS];
#pragma unroll
    for (int i = 0; i < F32_TOKENS; i++) {
        int row = work.first + i;
        source[i] = row < work.end ? (long long)source_of<UP>(order, row, s.top_k) * s.k : 0;
    }
    float acc[SIDES][F32_TOKENS] = {};
    for (int k = lane_id(); k < s.k; k += 32) {
        float a[SIDES];
        for (int side = 0; side < SIDES; side++) a[side] = weights[(long long)side * 32 * width + k];
#pragma unroll
        for (int i = 0; i < F32_TOKENS; i++)
            if (work.first + i < work.end) {
                float v = x[source[i] + k];
#pragma unroll
                for (int side = 0; side < SIDES; side++) acc[side][i] = fmaf(a[side], v, acc[side][i]);
            }
    }
#pragma unroll
    for (int i = 0; i < F32_TOKENS; i++) {
        float first = warp_sum(acc[0][i]), last = UP ? warp_sum(acc[SIDES - 1][i]) : 0.0f;
        if (lane_id() == 0 && work.first + i < work.end)
            out[(long long)(work.first + i) * s.n + column] =
                UP ? gated(first, last, bias, work.expert, column, s) : biased(first, bias, work.expert, column, s);
    }
}

constexpr int COMBINE_THREADS = THREADS;

// What the experts of a token made, N columns from c on. No places: pairs are not sorted. shared [T, H]: what the expert of all tokens made,
// or none, and its factor
template <int N>
__device__ __forceinline__ void add_experts(float (&sum)[N], Ptr<const float> rows, Ptr<const int> places, Ptr<const float> weights, int top_k,
                                            int width, Ptr<const float> shared, float factor, long long token, int c) {
    for (int j = 0; j < top_k; j++) {
        int row = (int)token * top_k + j;
        if (places != nullptr) row = places[row];
        float weight = weights[token * top_k + j], v[N];
        Wide<N>::load(rows + ((long long)row * width + c), v);
        for (int i = 0; i < N; i++) sum[i] = fmaf(weight, v[i], sum[i]);
    }
    if (shared != nullptr) {
        float v[N];
        Wide<N>::load(shared + (token * width + c), v);
        for (int i = 0; i < N; i++) sum[i] = fmaf(factor, v[i], sum[i]);
    }
}

// gates [T], or none: a product with 1 is exact, so that what the expert of all tokens made is added as it is.
__device__ __forceinline__ float shared_factor(Ptr<const float> gates, long long token) {
    return gates != nullptr ? sigmoid(gates[token]) : 1.0f;
}

// grid of both: tokens. N = 4 where H % 4 == 0, else 1
template <int N>
__global__ void __launch_bounds__(COMBINE_THREADS)
    moe_combine(In<float> rows, In<int> places, In<float> weights, int top_k, int width, In<float> shared, In<float> gates, Out<float> out) {
    long long token = blockIdx.x;
    float factor = shared_factor(gates, token);
    for (int c = (int)threadIdx.x * N; c < width; c += COMBINE_THREADS * N) {
        float sum[N] = {};
        add_experts<N>(sum, rows, places, weights, top_k, width, shared, factor, token, c);
        Wide<N>::store(out + (token * width + c), sum);
    }
}

// The same, added to a row of the stream, and the mean of its squares.
template <int N>
__device__ __forceinline__ float add_experts_to(Ptr<float> stream, Ptr<const float> rows, Ptr<const int> places, Ptr<const float> weights, int top_k,
                                                int width, Ptr<const float> shared, Ptr<const float> gates, long long token, Ptr<float> scratch) {
    float squares = 0, factor = shared_factor(gates, token);
    for (int c = (int)threadIdx.x * N; c < width; c += COMBINE_THREADS * N) {
        float sum[N] = {}, r[N];
        add_experts<N>(sum, rows, places, weights, top_k, width, shared, factor, token, c);
        Wide<N>::load(Ptr<const float>(stream + c), r);
        for (int i = 0; i < N; i++) r[i] += sum[i];
        Wide<N>::store(stream + c, r);
        for (int i = 0; i < N; i++) squares = fmaf(r[i], r[i], squares);
    }
    return block_sum<WARPS>(squares, scratch) / (float)width;
}

// The same, and out = the norm of the stream: the bits of add_rms_norm (norm.cu) after moe_combine.
template <int N>
__global__ void __launch_bounds__(COMBINE_THREADS, 4)
    moe_combine_norm(In<float> rows, In<int> places, In<float> weights, int top_k, int width, In<float> shared, In<float> gates, Out<float> residual,
                     In<float> w, float eps, Out<float> out) {
    SHARED(float, scratch, WARPS);
    long long token = blockIdx.x;
    Ptr<float> stream = residual + token * width;
    float mean = add_experts_to<N>(stream, rows, places, weights, top_k, width, shared, gates, token, scratch);
    // Each thread reads back what it wrote itself.
    scale_row<N>(Ptr<const float>(stream), 0.0f, 1.0f / sqrtf(mean + eps), w, nullptr, width, out + token * width);
}

// The same, and out rounded and packed beside it. grid: tokens, filled up
template <class P, int N>
__global__ void __launch_bounds__(COMBINE_THREADS, 4)
    moe_combine_pack_norm(In<float> rows, In<int> places, In<float> weights, int top_k, int width, In<float> shared, In<float> gates, Out<float> residual,
                          In<float> w, float eps, Out<float> out, int tokens, Out<P> packed) {
    SHARED(float, scratch, WARPS);
    PackedRow<P, N> row{packed, (int)blockIdx.x, packed_columns(width)};
    bool there = row.token < tokens;
    if (there) {
        Ptr<float> stream = residual + (long long)row.token * width;
        float mean = add_experts_to<N>(stream, rows, places, weights, top_k, width, shared, gates, row.token, scratch);
        scale_both(Ptr<const float>(stream), 1.0f / sqrtf(mean + eps), w, width, out + (long long)row.token * width, row);
    }
    row.fill_up(there ? width : 0);
}
