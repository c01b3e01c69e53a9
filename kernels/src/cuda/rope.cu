// rope: rotates the pairs of dimensions offset .. offset + 2·half of some heads by the angles of the token's position, in place
// x [T, H, D] f32 · cos, sin [P, half] f32 · positions [T] i32, below P · one block per token
// HALF: pairs (i, i + half); else (2i, 2i + 1) · (a, b) becomes (a cos - b sin, b cos + a sin)
// rope_sections: halves from the first dimension on, positions [T, 3]: a pair turns by the time's, the row's or the column's
// moves 16·half bytes per head and token; not measured: no GPU was available
#include "rotate.cuh"

constexpr int THREADS = 256;

struct RopeShape {
    int row_len, head_len;         // elements of a token and of a head
    int first_head, num_heads;     // which are rotated
    int offset, half;
};

template <bool HALF>
__global__ void __launch_bounds__(THREADS)
    rope(Out<float> x, RopeShape s, In<float> cos_table, In<float> sin_table, In<int> positions) {
    long long token = blockIdx.x;
    int position = positions[token];
    Ptr<const float> cosines = cos_table + (long long)position * s.half, sines = sin_table + (long long)position * s.half;
    for (int i = (int)threadIdx.x; i < s.num_heads * s.half; i += THREADS) {
        int head = s.first_head + i / s.half, pair = i % s.half;
        Ptr<float> at = x + (token * s.row_len + (long long)head * s.head_len + s.offset);
        Places p = places_of(pair, s.half, HALF);
        float a = at[p.first], b = at[p.second];
        float2 v = rotated(a, b, cosines[pair], sines[pair]);
        at[p.first] = v.x;
        at[p.second] = v.y;
    }
}

struct Sections {
    int sizes[3];                  // pairs that turn by time, row, column
    int interleaved;
};

__device__ __forceinline__ int axis_of(const Sections& sections, int pair) {
    if (sections.interleaved) return pair < 3 * sections.sizes[pair % 3] ? pair % 3 : 0;
    return (pair >= sections.sizes[0]) + (pair >= sections.sizes[0] + sections.sizes[1]);
}

__global__ void __launch_bounds__(THREADS) rope_sections(Out<float> x, RopeShape s, Sections sections, In<float> cos_table,
                                                         In<float> sin_table, In<int> positions) {
    long long token = blockIdx.x;
    for (int i = (int)threadIdx.x; i < s.num_heads * s.half; i += THREADS) {
        int head = i / s.half, pair = i % s.half;
        int position = positions[3 * token + axis_of(sections, pair)];
        long long angle = (long long)position * s.half + pair;
        Ptr<float> at = x + (token * s.row_len + (long long)head * s.head_len);
        float a = at[pair], b = at[pair + s.half];
        float2 v = rotated(a, b, cos_table[angle], sin_table[angle]);
        at[pair] = v.x;
        at[pair + s.half] = v.y;
    }
}
