// What products of weights and tokens have in common (linear.cu, moe.cu): the order of sums, and the loops that keep it. K is cut into
// RANGES ranges of whole units by its length alone; inside a range one accumulator takes the products in the order of k; the ranges
// are added from first to last. Nothing else may decide how a sum is made. A unit is 16 of K, or a group of 32 of quantised weights,
// whose products are summed from zero on, multiplied by the group's scale, and added: levels are exact in bf16, and scales in f32.
//
// Weights are the large side (M) of mma.m16n8k16 and tokens the small one (N), so that one order serves 1 token and 1,000.
//   multiply_few    a warp has one range of 16 rows, for tokens that its lanes read themselves
//   multiply_many   a block has 128 rows and 64 or 128 tokens, ranges one after the other
#pragma once
#include "tokens.cuh"

constexpr int RANGES = 8;

__device__ __forceinline__ int units_per_range(int units) { return (units + RANGES - 1) / RANGES; }

// ---- weights, in the order of pack.rs

// Quantised weights, byte by byte.
struct q8 {
    unsigned char byte;
};
struct q4 {
    unsigned char byte;
};
// With zeros.
struct q4z {
    unsigned char byte;
};

// A panel of 32 rows is a row of units along K: LEN elements each, for TILES tiles of 16. Tokens are rounded to Taken.
template <class W> struct Weights {
    using Taken = W;
    static constexpr int TILES = 1, LEN = 512;
    static constexpr bool SCALES = false, ZEROS = false;
};
// A unit is a group: HEADER bytes of scales and zeros, then its levels, LANE bytes for each lane and half.
template <int HEADER_BYTES, int LANE_BYTES> struct Groups {
    using Taken = bf16;
    static constexpr int TILES = 2, HEADER = HEADER_BYTES, LANE = LANE_BYTES, LEN = HEADER + 64 * LANE;
    static constexpr bool SCALES = true, ZEROS = HEADER > 64;
};
template <> struct Weights<q8> : Groups<64, 16> {};
template <> struct Weights<q4> : Groups<64, 8> {};
template <> struct Weights<q4z> : Groups<128, 8> {};

// What a lane has of 16 rows and one unit: fragments of A, scales and zeros of rows lane / 4 and lane / 4 + 8.
template <class W> struct Rows {
    unsigned a[Weights<W>::TILES][4];
    float scale[2], zero[2];
};

struct Global {
    template <class V, class T> static __device__ __forceinline__ V load(Ptr<const T> p) { return load_once<V>(p); }
};
struct Shared {
    template <class V, class T> static __device__ __forceinline__ V load(Ptr<T> p) { return load_vec<V>(p); }
};

// Two of four bytes, two's complement, as bf16: -128 ..= 127 is 128 + (the low seven bits), less 128 or 256.
__device__ __forceinline__ unsigned unpack_bytes(unsigned v, unsigned selector) {
    unsigned bytes = __byte_perm(v, 0, selector);
    return add_bf16x2((bytes & 0x007f007fu) | 0x43004300u, (bytes & 0x00800080u) | 0xc300c300u);
}
// Register r of eight nibbles, level + 8, as bf16: 128 + nibble, less 136.
__device__ __forceinline__ unsigned unpack_nibbles(unsigned v, int r) {
    return add_bf16x2((v >> 4 * r & 0x000f000fu) | 0x43004300u, 0xc308c308u);
}

// Half 0 or 1 of the 32 rows.
template <class From, class W, class P> __device__ __forceinline__ void load_rows(Rows<W>& rows, P unit, int half, int lane) {
    using Format = Weights<W>;
    if constexpr (!Format::SCALES) {
        uint4 v = From::template load<uint4>(unit + (half * 256 + lane * 8));
        rows.a[0][0] = v.x, rows.a[0][1] = v.y, rows.a[0][2] = v.z, rows.a[0][3] = v.w;
    } else {
        auto levels = unit + (Format::HEADER + (half * 32 + lane) * Format::LANE);
        if constexpr (Format::LANE == 16) {
            uint4 v = From::template load<uint4>(levels);
            unsigned words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int i = 0; i < 8; i++) rows.a[i / 4][i % 4] = unpack_bytes(words[i / 2], i % 2 ? 0x4342 : 0x4140);
        } else {
            uint2 v = From::template load<uint2>(levels);
#pragma unroll
            for (int r = 0; r < 4; r++) rows.a[0][r] = unpack_nibbles(v.x, r), rows.a[1][r] = unpack_nibbles(v.y, r);
        }
        auto scales = cast<const f16>(unit) + (half * 16 + lane / 4);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            f16 scale = scales[8 * i];
            rows.scale[i] = to_float(scale);
            if constexpr (Format::ZEROS) {
                f16 zero = scales[32 + 8 * i];
                rows.zero[i] = to_float(zero);
            }
        }
    }
}

// ---- tokens

template <class X> struct Pair;
template <> struct Pair<float> {
    static __device__ __forceinline__ float2 load(Ptr<const float> p) { return load_vec<float2>(p); }
};
template <> struct Pair<bf16> {
    static __device__ __forceinline__ float2 load(Ptr<const bf16> p) {
        unsigned v = load_vec<unsigned>(p);
        return make_float2(bf16_to_float((unsigned short)v), bf16_to_float((unsigned short)(v >> 16)));
    }
};
template <> struct Pair<f16> {
    static __device__ __forceinline__ float2 load(Ptr<const f16> p) {
        unsigned v = load_vec<unsigned>(p);
        return make_float2(f16_to_float((unsigned short)v), f16_to_float((unsigned short)(v >> 16)));
    }
};

// x[k], x[k + 1], rounded to T and packed; zero from `end` on. k is even.
template <class X, class T> __device__ __forceinline__ unsigned load_pair(Ptr<const X> row, int k, int end, int aligned) {
    float lo = 0, hi = 0;
    if (k + 1 < end && aligned) {
        float2 v = Pair<X>::load(row + k);
        lo = v.x, hi = v.y;
    } else if (k + 1 < end) {
        X a = row[k], b = row[k + 1];
        lo = to_float(a), hi = to_float(b);
    } else if (k < end) {
        X a = row[k];
        lo = to_float(a);
    }
    return Float<T>::pack(lo, hi);
}

// What a lane has of 8 tokens and one unit: fragments of B, and their sums where weights have zeros.
template <class W> struct Tokens {
    unsigned b[Weights<W>::TILES][2];
    float sum[2];
};

// Sums of the tokens that this lane has columns of, by a product with ones: they have the order of every other product.
template <class W> __device__ __forceinline__ void add_up(Tokens<W>& tokens) {
    if constexpr (Weights<W>::ZEROS) {
        const unsigned ones[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
        float d[4] = {};
        mma_m16n8k16_bf16(d, ones, tokens.b[0][0], tokens.b[0][1]);
        mma_m16n8k16_bf16(d, ones, tokens.b[1][0], tokens.b[1][1]);
        tokens.sum[0] = d[0], tokens.sum[1] = d[1];
    }
}

// D += rows · tokens, for one unit of K
template <class W> __device__ __forceinline__ void multiply(float (&d)[4], const Rows<W>& rows, const Tokens<W>& tokens) {
    if constexpr (!Weights<W>::SCALES) {
        Float<W>::mma(d, rows.a[0], tokens.b[0][0], tokens.b[0][1]);
    } else {
        float part[4] = {};
        mma_m16n8k16_bf16(part, rows.a[0], tokens.b[0][0], tokens.b[0][1]);
        mma_m16n8k16_bf16(part, rows.a[1], tokens.b[1][0], tokens.b[1][1]);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if constexpr (Weights<W>::ZEROS) part[i] = fmaf(-rows.zero[i / 2], tokens.sum[i % 2], part[i]);
            d[i] = fmaf(rows.scale[i / 2], part[i], d[i]);
        }
    }
}

// ---- few tokens

// Rows of x, of which a lane reads those that it is told; -1 is none and counts as zeros.
template <class X> struct Source {
    Ptr<const X> x;
    long long stride;   // elements from one row to the next
    int k, pairs;       // 1: every even element of a row begins an aligned pair
};

// acc[side][i] += w[side] · x[source[i]], over this warp's range. `panel` is that of the first side, the next is side_len elements
// further; a warp has one half of each.
template <int UNROLL, class X, class W, int SIDES, int TILES>
__device__ __forceinline__ void multiply_few(float (&acc)[SIDES][TILES][4], Ptr<const W> panel, long long side_len, int half, int units,
                                             const Source<X>& from, const int (&source)[TILES]) {
    using Format = Weights<W>;
    int lane = lane_id(), pair = lane % 4 * 2;
    int per = units_per_range(units), end = min((warp_id() + 1) * per, units);
#pragma unroll UNROLL
    for (int unit = warp_id() * per; unit < end; unit++) {
        Rows<W> rows[SIDES];
#pragma unroll
        for (int side = 0; side < SIDES; side++)
            load_rows<Global>(rows[side], panel + (side * side_len + (long long)unit * Format::LEN), half, lane);
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            Tokens<W> tokens = {};
            if (source[i] >= 0) {
                Ptr<const X> row = from.x + (long long)source[i] * from.stride;
#pragma unroll
                for (int t = 0; t < Format::TILES; t++) {
                    int k = (unit * Format::TILES + t) * 16 + pair;
                    tokens.b[t][0] = load_pair<X, typename Format::Taken>(row, k, from.k, from.pairs);
                    tokens.b[t][1] = load_pair<X, typename Format::Taken>(row, k + 8, from.k, from.pairs);
                }
            }
            add_up(tokens);
#pragma unroll
            for (int side = 0; side < SIDES; side++) multiply(acc[side][i], rows[side], tokens);
        }
    }
}

// partial[side][range][token][row], of 16 rows and 8 · TILES tokens
template <int SIDES, int TILES>
__device__ __forceinline__ void store_partial(Ptr<float> partial, const float (&acc)[SIDES][TILES][4]) {
    int group = lane_id() / 4, pair = lane_id() % 4 * 2;
#pragma unroll
    for (int side = 0; side < SIDES; side++)
#pragma unroll
        for (int i = 0; i < TILES; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int token = i * 8 + pair + j % 2, row = group + j / 2 * 8;
                partial[((side * RANGES + warp_id()) * 8 * TILES + token) * 16 + row] = acc[side][i][j];
            }
}

// The ranges of element i = token · 16 + row, from first to last.
template <int TILES> __device__ __forceinline__ float sum_ranges(Ptr<float> partial, int side, int i) {
    float total = 0;
    for (int range = 0; range < RANGES; range++) total += partial[(side * RANGES + range) * 16 * 8 * TILES + i];
    return total;
}

// ---- many tokens

constexpr int MANY_PANELS = 4;
constexpr int STAGES = 3;
// One step of K is two tiles. Rows of tokens in shared memory are 40 long: 80 bytes apart, eight of them touch every bank once.
constexpr int X_STRIDE = 40;

template <class A, class B> constexpr bool SAME = false;
template <class A> constexpr bool SAME<A, A> = true;

// Blocks that a multiprocessor has room for: two of 64 tokens and weights of 16 bits, 128 registers a thread.
template <class W> constexpr int many_blocks(int tokens) { return tokens == 64 && !Weights<W>::SCALES ? 2 : 1; }

// A row of x that a thread loads: of each 64 of the block's, row (thread / 4).
template <class X> struct Row {
    Ptr<const X> x;
    bool there;
    int k, pairs;   // 8: every eighth element begins 16 aligned bytes; 1: every even one an aligned pair
};

template <class T, class X> __device__ __forceinline__ uint4 load_four_pairs(const Row<X>& row, int k) {
    unsigned v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = load_pair<X, T>(row.x, k + 2 * i, row.k, row.pairs);
    return make_uint4(v[0], v[1], v[2], v[3]);
}
// x[k] .. x[k + 7], rounded to T and packed; zero from the end on. k is a multiple of eight.
template <class T, class X> __device__ __forceinline__ uint4 load_eight(const Row<X>& row, int k) {
    if (row.pairs != 8 || k + 8 > row.k) return load_four_pairs<T>(row, k);
    if constexpr (SAME<X, T>) {
        return load_vec<uint4>(row.x + k);
    } else {
        float a[4], b[4];
        Wide<4>::load(row.x + k, a);
        Wide<4>::load(row.x + (k + 4), b);
        return make_uint4(Float<T>::pack(a[0], a[1]), Float<T>::pack(a[2], a[3]), Float<T>::pack(b[0], b[1]), Float<T>::pack(b[2], b[3]));
    }
}

// Where a block's tokens come from, in steps of 32 of K. Through registers, since they may be rounded on the way: to one of two places.
template <class T, class X, int TOKENS> struct RowTokens {
    static constexpr bool PACKED = false;
    static constexpr int PLACES = 2, LEN = TOKENS * X_STRIDE;
    Row<X> rows[TOKENS / 64];

    static __device__ __forceinline__ int place(int token, int k) { return token * X_STRIDE + k; }
    __device__ __forceinline__ void load(uint4 (&held)[TOKENS / 64], int step) const {
        int thread = (int)threadIdx.x;
#pragma unroll
        for (int i = 0; i < TOKENS / 64; i++)
            held[i] = rows[i].there ? load_eight<T>(rows[i], step * 32 + thread % 4 * 8) : make_uint4(0, 0, 0, 0);
    }
    __device__ __forceinline__ void store(Ptr<T> to, const uint4 (&held)[TOKENS / 64]) const {
        int thread = (int)threadIdx.x;
#pragma unroll
        for (int i = 0; i < TOKENS / 64; i++) store_vec(to + place(i * 64 + thread / 4, thread % 4 * 8), held[i]);
    }
};

// Rounded and packed before: asynchronous copies beside those of the weights. A step is four columns of tokens.cuh.
template <class T, int TOKENS> struct PackedTokens {
    static constexpr bool PACKED = true;
    static constexpr int PLACES = STAGES, LEN = TOKENS * 32;
    Ptr<const T> first;   // of the block's tokens, in column 0

    static __device__ __forceinline__ int place(int token, int k) { return (k / 8 * TOKENS + token) * 8; }
    // Zeros for tokens from `count` on.
    __device__ __forceinline__ void copy(Ptr<T> to, int step, int count) const {
#pragma unroll
        for (int i = 0; i < TOKENS / 64; i++) {
            int piece = i * 256 + (int)threadIdx.x, column = piece / TOKENS, token = piece % TOKENS;
            cp_async16(to + piece * 8, first + ((step * 4 + column) * PACKED_TOKENS + token) * 8, token < count ? 16 : 0);
        }
    }
};

// Where a block is, of a grid (panels / 4, tokens / TOKENS, heads), and what its threads have of the result.
template <int TOKENS> struct ManyBlock {
    int first_panel, first_token, head;

    // Of the first panel, in the weights of all heads.
    template <class W> __device__ __forceinline__ long long panel(int panels, int units) const {
        return (long long)(head * panels + first_panel) * units * Weights<W>::LEN;
    }

    // use(half, i, j, row of the head's weights, token): where this thread's total[half][i][j] belongs, if panels do not take turns.
    template <class Use> __device__ __forceinline__ void each(const Use& use) const {
        int lane = lane_id(), warp_m = warp_id() % 4, warp_n = warp_id() / 4;
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int i = 0; i < TOKENS / 16; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    int row = (first_panel + warp_m) * 32 + half * 16 + lane / 4 + j / 2 * 8;
                    use(half, i, j, row, first_token + warp_n * (TOKENS / 2) + i * 8 + lane % 4 * 2 + j % 2);
                }
    }
};
template <int TOKENS> __device__ __forceinline__ ManyBlock<TOKENS> many_block() {
    return ManyBlock<TOKENS>{(int)blockIdx.x * MANY_PANELS, (int)blockIdx.y * TOKENS, (int)blockIdx.z};
}

// total[i] = 16 rows of w · the warp's half of the tokens, two of them for each warp: 4 warps along the panels, 2 along the tokens. Where
// panels take TURNS (gate and up), the two are the same half of both, so that a warp has what belongs together; else the halves of a
// panel. `panel` is the block's first, of `panels` that are there; `count` of the tokens are.
//
// More tokens cost less each: with 64 in f32 there are 32 FLOP for each byte from the L2 cache and 12 for each from and to shared memory, with
// 64 in 16 bits 43 and 12, with 128 in 16 bits 64 and 16.
template <bool TURNS, int TOKENS, class From, class W>
__device__ __forceinline__ void multiply_many(float (&total)[2][TOKENS / 16][4], Ptr<const W> panel, int panels, int units, const From& from,
                                              int count) {
    using Format = Weights<W>;
    using Taken = typename Format::Taken;
    constexpr int UNITS = 2 / Format::TILES;                                  // of a step
    constexpr int STEP = UNITS * Format::LEN, STAGE = MANY_PANELS * STEP;     // elements of a panel and of all four
    constexpr int PIECE = 16 / (int)sizeof(W), PIECES = STAGE / PIECE;        // copies of 16 bytes
    SHARED(W, weights, STAGES * STAGE);
    SHARED(Taken, tokens, From::PLACES * From::LEN);
    int thread = (int)threadIdx.x, lane = lane_id(), warp_m = warp_id() % 4, warp_n = warp_id() / 4;
    int steps = (units + UNITS - 1) / UNITS;
    // Sixteens of tokens that this warp has.
    int mine = min(TOKENS / 32, (count - warp_n * (TOKENS / 2) + 15) / 16);

    auto tokens_of = [&](int step) { return tokens + step % From::PLACES * From::LEN; };
    auto copy = [&](int step) {
        if (step < steps) {
#pragma unroll
            for (int first = 0; first < PIECES; first += 256) {
                int piece = first + thread;
                if (PIECES % 256 && piece >= PIECES) break;
                int p = piece / (STEP / PIECE), at = piece % (STEP / PIECE) * PIECE;
                bool there = p < panels && step * UNITS + at / Format::LEN < units;
                long long source = (long long)p * units * Format::LEN + (long long)step * STEP + at;
                cp_async16(weights + (step % STAGES * STAGE + piece * PIECE), panel + (there ? source : 0), there ? 16 : 0);
            }
            if constexpr (From::PACKED) from.copy(tokens_of(step), step, count);
        }
        cp_async_commit();
    };
    uint4 held[TOKENS / 64];

    float acc[2][TOKENS / 16][4] = {};
    int per = units_per_range(units);
    copy(0);
    copy(1);
    if constexpr (!From::PACKED) {
        from.load(held, 0);
        from.store(tokens_of(0), held);
    }
    for (int step = 0; step < steps; step++) {
        cp_async_wait<1>();
        __syncthreads();
        copy(step + 2);
        if constexpr (!From::PACKED)
            if (step + 1 < steps) from.load(held, step + 1);
#pragma unroll
        for (int u = 0; u < UNITS; u++) {
            int unit = step * UNITS + u;
            if (unit >= units) break;
            Rows<W> a[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int p = TURNS ? warp_m / 2 * 2 + i : warp_m, half = TURNS ? warp_m % 2 : i;
                load_rows<Shared>(a[i], weights + (step % STAGES * STAGE + p * STEP + u * Format::LEN), half, lane);
            }
#pragma unroll
            for (int i = 0; i < TOKENS / 32; i++) {
                if (i >= mine) break;
                Tokens<W> b[2];
#pragma unroll
                for (int t = 0; t < Format::TILES; t++) {
                    // Matrices: tokens 0..8 with k 0..8 and 8..16, then tokens 8..16.
                    int token = warp_n * (TOKENS / 2) + i * 16 + lane / 16 * 8 + lane % 8, k = (u * Format::TILES + t) * 16 + lane / 8 % 2 * 8;
                    unsigned r[4];
                    ldmatrix_x4(r, tokens_of(step) + From::place(token, k));
                    b[0].b[t][0] = r[0], b[0].b[t][1] = r[1];
                    b[1].b[t][0] = r[2], b[1].b[t][1] = r[3];
                }
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    add_up(b[j]);
                    multiply(acc[0][2 * i + j], a[0], b[j]);
                    multiply(acc[1][2 * i + j], a[1], b[j]);
                }
            }
            if ((unit + 1) % per == 0 || unit + 1 == units) {
#pragma unroll
                for (int i = 0; i < 2; i++)
#pragma unroll
                    for (int j = 0; j < TOKENS / 16; j++)
#pragma unroll
                        for (int e = 0; e < 4; e++) total[i][j][e] += acc[i][j][e], acc[i][j][e] = 0;
            }
        }
        if constexpr (!From::PACKED)
            if (step + 1 < steps) from.store(tokens_of(step + 1), held);
    }
}
