// linear: out[t, n] = act(Σ_k x[t, k] · w[n, k] + bias[n]), and the same for each of H heads with its own w
// where it adds: out[t, n] += Σ_k x[t, k] · w[n, k] + bias[n], for packed tokens
// x [T, K] X (float or bf16), rounded to W · w [N, K] W (bf16 or f16) in fragment order (pack.rs) · bias [N] f32 or none
// out [T, N] f32, of heads also rounded and packed for another layer (tokens.cuh), or both · sums in f32 · any T > 0, N, K
// 2·T·N·K FLOP; moves 2·N·K bytes of weights and size·T·K of x for each 128 rows; not measured: no GPU was available
//
//   linear_few    a block has 16 rows of w, each warp one range: every weight is read once, straight into registers; the last blocks may
//                 have another layer of the same x and K
//   linear_many   a block has 128 rows of w and 64 or 128 tokens
//   linear_packed the same, for tokens that were rounded and packed once (tokens.cuh): each block then reads half of their bytes
//   linear_wgmma  a block has 128 rows of w and 192 tokens, a cluster two or four times the rows and twice the tokens; sm_90a alone
//   linear_f32    weights in f32 (routers): a warp has one row of w and 8 tokens
#include "wgmma.cuh"

struct LinearShape {
    int rows, n, k;             // T, N, K
    int panels, units;          // of 32 rows and along K, in one member
    int x_stride, out_stride;   // elements from one token to the next
    int x_head, out_head;       // and from one head to the next
    int act;                    // Activation, see activate()
    int adds;                   // to what is in out
    int pairs;                  // of x: 8: every eighth element of a row begins 16 aligned bytes; 1: every even one an aligned pair
    int first_packed;           // of heads: which of the packed tokens is the first, and how many columns these have
    int columns_packed;
    int floats;                 // of heads: whether `out` gets the result where it is packed as well
};

// Where heads leave what they make: in f32, and rounded as another layer takes it, where it takes it so (tokens.cuh).
template <class T> struct HeadResult {
    Ptr<float> out;
    Ptr<T> packed;
    int head;

    __device__ __forceinline__ void store(int row, int token, float v, int out_stride, const LinearShape& s) const {
        int column = head * s.out_head + row;
        if (packed == nullptr || s.floats) out[(long long)token * out_stride + column] = v;
        if (packed != nullptr) packed[packed_place(s.first_packed + token, column / 8, s.columns_packed) + column % 8] = Float<T>::from(v);
    }
};

// Another layer beside the first: its outputs, and panels, 0 if there is none.
struct LinearBeside {
    int n, panels;
};

__device__ __forceinline__ float activate(float v, int act) {
    switch (act) {
    case 1: return 0.5f * v * (1.0f + tanhf(0.7978845608f * (v + 0.044715f * v * v * v)));
    case 2: return 0.5f * v * (1.0f + erff(v * 0.7071067812f));
    case 3: return v / (1.0f + expf(-1.702f * v));
    default: return v;
    }
}

// grid: (2 · panels of both layers, blocks of 8 · TILES tokens, heads; 1 with a layer beside), 256 threads
template <class X, class W, int TILES>
__global__ void __launch_bounds__(RANGES * 32, !Weights<W>::SCALES ? 4 : TILES == 4 ? 2 : 3)
    linear_few(In<X> x, In<W> w, In<float> bias, LinearShape s, Out<float> out, In<W> w_beside, In<float> bias_beside, LinearBeside beside,
               Out<float> out_beside, Out<typename Weights<W>::Taken> packed) {
    SHARED(float, partial, RANGES * 16 * 8 * TILES);
    int index = (int)blockIdx.x, first_token = (int)blockIdx.y * 8 * TILES, head = (int)blockIdx.z;
    bool is_beside = index >= 2 * s.panels;
    if (is_beside) index -= 2 * s.panels;
    int first_row = index * 16, n = is_beside ? beside.n : s.n, out_stride = is_beside ? beside.n : s.out_stride;
    long long panel = (long long)(head * s.panels + index / 2) * s.units * Weights<W>::LEN;
    Source<X> from{x + (long long)head * s.x_head, s.x_stride, s.k, s.pairs};
    int source[TILES];
#pragma unroll
    for (int i = 0; i < TILES; i++) {
        int token = first_token + i * 8 + lane_id() / 4;
        source[i] = token < s.rows ? token : -1;
    }
    float acc[1][TILES][4] = {};
    Ptr<const W> weights = (is_beside ? w_beside : w) + panel;
    multiply_few<(TILES == 4 ? 2 : 4) / Weights<W>::TILES>(acc, weights, 0, index % 2, s.units, from, source);
    store_partial(partial, acc);
    __syncthreads();
    Ptr<const float> added = is_beside ? bias_beside : bias;
    HeadResult<typename Weights<W>::Taken> result{is_beside ? out_beside : out, packed, head};
    for (int i = (int)threadIdx.x; i < 16 * 8 * TILES; i += RANGES * 32) {
        int row = first_row + i % 16, token = first_token + i / 16;
        if (row >= n || token >= s.rows) continue;
        float total = sum_ranges<TILES>(partial, 0, i);
        if (added != nullptr) total += added[row];
        result.store(row, token, activate(total, s.act), out_stride, s);
    }
}

// What both kernels for many tokens do once they know where these come from. add_to(row, token, value), store(row, token, value): of rows and tokens
// that are there or not.
template <int TOKENS, class From, class W, class AddTo, class Store>
__device__ __forceinline__ void run_many(const ManyBlock<TOKENS>& at, const From& from, Ptr<const W> w, Ptr<const float> bias, const LinearShape& s,
                                         const AddTo& add_to, const Store& store) {
    float total[2][TOKENS / 16][4] = {};
    multiply_many<false, TOKENS>(total, w + at.template panel<W>(s.panels, s.units), s.panels - at.first_panel, s.units, from, s.rows - at.first_token);
    at.each([&](int half, int i, int j, int row, int token) {
        float v = total[half][i][j];
        if (bias != nullptr && row < s.n) v += bias[row];
        total[half][i][j] = activate(v, s.act);
    });
    // All that it reads before anything is written: the reads are under way together.
    if (s.adds) at.each([&](int half, int i, int j, int row, int token) { total[half][i][j] = add_to(row, token, total[half][i][j]); });
    at.each([&](int half, int i, int j, int row, int token) { store(row, token, total[half][i][j]); });
}

// grid: (panels / 4, tokens / TOKENS, heads), 256 threads
template <class X, class W, int TOKENS>
__global__ void __launch_bounds__(256, many_blocks<W>(TOKENS))
    linear_many(In<X> x, In<W> w, In<float> bias, LinearShape s, Out<float> out, Out<typename Weights<W>::Taken> packed) {
    ManyBlock<TOKENS> at = many_block<TOKENS>();
    RowTokens<typename Weights<W>::Taken, X, TOKENS> from;
#pragma unroll
    for (int i = 0; i < TOKENS / 64; i++) {
        int token = at.first_token + i * 64 + (int)threadIdx.x / 4;
        from.rows[i] = Row<X>{x + ((long long)at.head * s.x_head + (long long)token * s.x_stride), token < s.rows, s.k, s.pairs};
    }
    auto add_to = [](int, int, float v) { return v; };
    HeadResult<typename Weights<W>::Taken> result{out, packed, at.head};
    run_many(at, from, w, bias, s, add_to, [&](int row, int token, float v) {
        if (row < s.n && token < s.rows) result.store(row, token, v, s.out_stride, s);
    });
}

// grid: (panels / 4, tokens / TOKENS), 256 threads; x in the order of tokens.cuh. `packed`: out rounded in that order, for another layer, in
// place of f32; the grid then has all tokens that fill it up
template <class W, int TOKENS>
__global__ void __launch_bounds__(256, many_blocks<W>(TOKENS))
    linear_packed(In<typename Weights<W>::Taken> x, In<W> w, In<float> bias, LinearShape s, Out<float> out, Out<typename Weights<W>::Taken> packed) {
    using Taken = typename Weights<W>::Taken;
    ManyBlock<TOKENS> at = many_block<TOKENS>();
    int columns = packed_columns(s.k), columns_out = packed_columns(s.n);
    PackedTokens<Taken, TOKENS> from{x + packed_place(at.first_token, 0, columns)};
    auto add_to = [&](int row, int token, float v) {
        if (row < s.n && token < s.rows) v = out[(long long)token * s.out_stride + row] + v;
        return v;
    };
    run_many(at, from, w, bias, s, add_to, [&](int row, int token, float v) {
        bool there = row < s.n && token < s.rows;
        if (packed == nullptr) {
            if (there) out[(long long)token * s.out_stride + row] = v;
        } else if (row < columns_out * 8) {
            packed[packed_place(token, row / 8, columns_out) + row % 8] = Float<Taken>::from(there ? v : 0.0f);
        }
    });
}

#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
// grid: (panels / 4, up to a multiple of ROWS; tokens / 192, of two); clusters of ROWS by two, 384 threads, a ring of stages; x in the order of tokens.cuh
template <class W, int ROWS>
__global__ void __launch_bounds__(WGMMA_THREADS, 1) linear_wgmma(In<W> x, In<W> w, In<float> bias, LinearShape s, Out<float> out) {
    int first_panel = (int)blockIdx.x * CLUSTER_PANELS, first_token = (int)blockIdx.y * CLUSTER_TOKENS;
    int panels = max(min(s.panels - first_panel, CLUSTER_PANELS), 0), tokens = max(min((s.rows - first_token + 63) / 64 * 64, CLUSTER_TOKENS), 0);
    float total[CLUSTER_TOKENS / 8][4] = {};
    ClusterWork<W, ROWS, 2> work{w + (long long)first_panel * s.units * Weights<W>::LEN, x, panels, s.units, first_token, tokens, packed_columns(s.k)};
    if (multiply_clusters(total, work)) {
        int lane = lane_id(), first_row = (first_panel + warp_id() / 2 - 2) * 32 + wgmma_half() * 16 + lane / 4;
#pragma unroll
        for (int j = 0; j < CLUSTER_TOKENS / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int row = first_row + e / 2 * 8, token = first_token + j * 8 + lane % 4 * 2 + e % 2;
                if (row >= s.n || token >= s.rows) continue;
                float v = total[j][e];
                if (bias != nullptr) v += bias[row];
                total[j][e] = activate(v, s.act);
                if (s.adds) total[j][e] = out[(long long)token * s.out_stride + row] + total[j][e];
            }
#pragma unroll
        for (int j = 0; j < CLUSTER_TOKENS / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int row = first_row + e / 2 * 8, token = first_token + j * 8 + lane % 4 * 2 + e % 2;
                if (row < s.n && token < s.rows) out[(long long)token * s.out_stride + row] = total[j][e];
            }
    }
    cluster_wait();
}
#endif

constexpr int F32_WARPS = 4;
constexpr int F32_TOKENS = 8;

// grid: (rows / 4, tokens / 8, heads), 128 threads
template <class X>
__global__ void __launch_bounds__(F32_WARPS * 32)
    linear_f32(In<X> x, In<float> w, In<float> bias, LinearShape s, Out<float> out) {
    int row = (int)blockIdx.x * F32_WARPS + warp_id(), first_token = (int)blockIdx.y * F32_TOKENS, head = (int)blockIdx.z;
    if (row >= s.n) return;
    Ptr<const float> weights = w + ((long long)head * s.panels * 32 + row) * s.units * 16;
    Ptr<const X> from = x + ((long long)head * s.x_head + (long long)first_token * s.x_stride);
    float acc[F32_TOKENS] = {};
    for (int k = lane_id(); k < s.k; k += 32) {
        float a = weights[k];
#pragma unroll
        for (int i = 0; i < F32_TOKENS; i++)
            if (first_token + i < s.rows) {
                X v = from[(long long)i * s.x_stride + k];
                acc[i] = fmaf(a, to_float(v), acc[i]);
            }
    }
#pragma unroll
    for (int i = 0; i < F32_TOKENS; i++) {
        float v = warp_sum(acc[i]);
        if (lane_id() == 0 && first_token + i < s.rows) {
            if (bias != nullptr) v += bias[row];
            out[(long long)(first_token + i) * s.out_stride + (long long)head * s.out_head + row] = activate(v, s.act);
        }
    }
}
