// linear: out[t, n] = act(Σ_k x[t, k] · w[n, k] + bias[n]), and the same for each of H heads with its own w
// x [T, K] X (float or bf16), rounded to W · w [N, K] W (bf16 or f16) in fragment order (pack.rs) · bias [N] f32 or none
// out [T, N] f32 · sums in f32 · any T > 0, N, K
// 2·T·N·K FLOP; moves 2·N·K bytes of weights and size·T·K of x for each 128 rows; not measured: no GPU was available
//
// Weights are the large side (M) of mma.m16n8k16 and tokens the small one (N), so that one order serves 1 token and 1,000:
// K is cut into RANGES ranges of whole 16s by its length alone; inside a range one accumulator takes the products in the order
// of k; the ranges are added from first to last. Both kernels do this, and nothing else may decide how a sum is made.
//
//   linear_few    a block has 16 rows of w, each warp one range: every weight is read once, straight into registers
//   linear_many   a block has 128 rows of w and 64 tokens, ranges one after the other
//   linear_f32    weights in f32 (routers): a warp has one row of w and 8 tokens
#include "gemm.cuh"

struct LinearShape {
    int rows, n, k;             // T, N, K
    int panels, tiles;          // of 32 rows and of 16 along K, in one member
    int x_stride, out_stride;   // elements from one token to the next
    int x_head, out_head;       // and from one head to the next
    int act;                    // Activation, see activate()
    int pairs;                  // 1: every even element of a row of x begins an aligned pair
};

__device__ __forceinline__ float activate(float v, int act) {
    switch (act) {
    case 1: return 0.5f * v * (1.0f + tanhf(0.7978845608f * (v + 0.044715f * v * v * v)));
    case 2: return 0.5f * v * (1.0f + erff(v * 0.7071067812f));
    case 3: return v / (1.0f + expf(-1.702f * v));
    default: return v;
    }
}

// grid: (2 · panels, blocks of 8 · TILES tokens, heads), 256 threads
template <class X, class W, int TILES>
__global__ void __launch_bounds__(RANGES * 32, 4)
    linear_few(In<X> x, In<W> w, In<float> bias, LinearShape s, Out<float> out) {
    SHARED(float, partial, RANGES * 16 * 8 * TILES);
    int lane = lane_id(), warp = warp_id(), group = lane / 4, pair = lane % 4 * 2;
    int first_row = (int)blockIdx.x * 16, first_token = (int)blockIdx.y * 8 * TILES, head = (int)blockIdx.z;
    int panel = head * s.panels + (int)blockIdx.x / 2, half = (int)blockIdx.x % 2;
    Ptr<const W> fragments = w + ((long long)panel * s.tiles * 2 + half) * 256 + lane * 8;
    Ptr<const X> from = x + (long long)head * s.x_head;

    float acc[TILES][4] = {};
    int per = tiles_per_range(s.tiles), end = min((warp + 1) * per, s.tiles);
#pragma unroll 4
    for (int tile = warp * per; tile < end; tile++) {
        uint4 a = load_once<uint4>(fragments + (long long)tile * 512);
        unsigned rows[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            int token = first_token + i * 8 + group;
            unsigned b0 = 0, b1 = 0;
            if (token < s.rows) {
                Ptr<const X> row = from + (long long)token * s.x_stride;
                b0 = load_pair<X, W>(row, tile * 16 + pair, s.k, s.pairs);
                b1 = load_pair<X, W>(row, tile * 16 + 8 + pair, s.k, s.pairs);
            }
            Float<W>::mma(acc[i], rows, b0, b1);
        }
    }
    // partial[range][token][row]
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int token = i * 8 + pair + j % 2, row = group + j / 2 * 8;
            partial[(warp * 8 * TILES + token) * 16 + row] = acc[i][j];
        }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < 16 * 8 * TILES; i += RANGES * 32) {
        int row = first_row + i % 16, token = first_token + i / 16;
        if (row >= s.n || token >= s.rows) continue;
        float total = 0;
        for (int range = 0; range < RANGES; range++) total += partial[range * 16 * 8 * TILES + i];
        if (bias != nullptr) total += bias[row];
        out[(long long)token * s.out_stride + (long long)head * s.out_head + row] = activate(total, s.act);
    }
}

constexpr int MANY_TOKENS = 64;
constexpr int MANY_PANELS = 4;
constexpr int STAGES = 3;
// One step of K is two tiles. Rows of x in shared memory are 40 long: 80 bytes apart, eight of them touch every bank once.
constexpr int X_STRIDE = 40;

// grid: (panels / 4, tokens / 64, heads), 256 threads: 4 warps along the panels, 2 along the tokens, 32 x 32 each
template <class X, class W>
__global__ void __launch_bounds__(256) linear_many(In<X> x, In<W> w, In<float> bias, LinearShape s, Out<float> out) {
    SHARED(W, weights, STAGES * MANY_PANELS * 1024);
    SHARED(W, tokens, 2 * MANY_TOKENS * X_STRIDE);
    int thread = (int)threadIdx.x, lane = lane_id(), warp_m = warp_id() % 4, warp_n = warp_id() / 4;
    int first_panel = (int)blockIdx.x * MANY_PANELS, first_token = (int)blockIdx.y * MANY_TOKENS, head = (int)blockIdx.z;
    int steps = (s.tiles + 1) / 2;
    Ptr<const X> from = x + (long long)head * s.x_head;

    // A step of weights: 4 panels x 2 tiles x 1 KiB, two copies of 16 bytes for each thread.
    auto copy_weights = [&](int step) {
        if (step < steps) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int piece = thread + i * 256, panel = piece / 128, tile = step * 2 + piece % 128 / 64;
                bool there = first_panel + panel < s.panels && tile < s.tiles;
                long long source = ((long long)(head * s.panels + first_panel + panel) * s.tiles + tile) * 512 + piece % 64 * 8;
                cp_async16(weights + (step % STAGES * MANY_PANELS * 1024 + piece * 8), w + (there ? source : 0), there ? 16 : 0);
            }
        }
        cp_async_commit();
    };
    // A step of tokens: 64 x 32, eight neighbours for each thread, through registers because they are rounded on the way.
    unsigned held[4];
    auto load_tokens = [&](int step) {
        int token = first_token + thread / 4, k = step * 32 + thread % 4 * 8;
        Ptr<const X> row = from + (long long)token * s.x_stride;
#pragma unroll
        for (int i = 0; i < 4; i++) held[i] = token < s.rows ? load_pair<X, W>(row, k + 2 * i, s.k, s.pairs) : 0u;
    };
    auto store_tokens = [&](int step) {
        store_vec(tokens + ((step % 2 * MANY_TOKENS + thread / 4) * X_STRIDE + thread % 4 * 8),
                  make_uint4(held[0], held[1], held[2], held[3]));
    };

    float total[2][4][4] = {}, acc[2][4][4] = {};
    int per = tiles_per_range(s.tiles);
    copy_weights(0);
    copy_weights(1);
    load_tokens(0);
    store_tokens(0);
    for (int step = 0; step < steps; step++) {
        cp_async_wait<1>();
        __syncthreads();
        copy_weights(step + 2);
        if (step + 1 < steps) load_tokens(step + 1);
#pragma unroll
        for (int t = 0; t < 2; t++) {
            int tile = step * 2 + t;
            if (tile >= s.tiles) break;
            unsigned a[2][4], b[2][4];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                uint4 v = load_vec<uint4>(weights + (step % STAGES * MANY_PANELS * 1024 + ((warp_m * 2 + t) * 2 + half) * 256 + lane * 8));
                a[half][0] = v.x, a[half][1] = v.y, a[half][2] = v.z, a[half][3] = v.w;
            }
#pragma unroll
            for (int i = 0; i < 2; i++) {
                // Matrices: tokens 0..8 with k 0..8 and 8..16, then tokens 8..16.
                int token = warp_n * 32 + i * 16 + lane / 16 * 8 + lane % 8;
                ldmatrix_x4(b[i], tokens + ((step % 2 * MANY_TOKENS + token) * X_STRIDE + t * 16 + lane / 8 % 2 * 8));
            }
#pragma unroll
            for (int half = 0; half < 2; half++)
#pragma unroll
                for (int i = 0; i < 4; i++) Float<W>::mma(acc[half][i], a[half], b[i / 2][i % 2 * 2], b[i / 2][i % 2 * 2 + 1]);
            if ((tile + 1) % per == 0 || tile + 1 == s.tiles) {
#pragma unroll
                for (int half = 0; half < 2; half++)
#pragma unroll
                    for (int i = 0; i < 4; i++)
#pragma unroll
                        for (int j = 0; j < 4; j++) total[half][i][j] += acc[half][i][j], acc[half][i][j] = 0;
            }
        }
        if (step + 1 < steps) store_tokens(step + 1);
    }
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int row = (first_panel + warp_m) * 32 + half * 16 + lane / 4 + j / 2 * 8;
                int token = first_token + warp_n * 32 + i * 8 + lane % 4 * 2 + j % 2;
                if (row >= s.n || token >= s.rows) continue;
                float v = total[half][i][j];
                if (bias != nullptr) v += bias[row];
                out[(long long)token * s.out_stride + (long long)head * s.out_head + row] = activate(v, s.act);
            }
}

constexpr int F32_WARPS = 4;
constexpr int F32_TOKENS = 8;

// grid: (rows / 4, tokens / 8, heads), 128 threads
template <class X>
__global__ void __launch_bounds__(F32_WARPS * 32)
    linear_f32(In<X> x, In<float> w, In<float> bias, LinearShape s, Out<float> out) {
    int row = (int)blockIdx.x * F32_WARPS + warp_id(), first_token = (int)blockIdx.y * F32_TOKENS, head = (int)blockIdx.z;
    if (row >= s.n) return;
    Ptr<const float> weights = w + ((long long)head * s.panels * 32 + row) * s.tiles * 16;
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
