// latent_rows: what latent attention reads of a token, made ready in one launch
//   cache[slots[t], :R] = rounded(kv[t, :R] / rms(kv[t, :R]) * norm)   cache[slots[t], R:] = rounded(rotated kv[t, R:])     block (t, 0)
//   q[t, h, N:] rotated in place, absorbed[t, h, R:] = q[t, h, N:]                                                         block (t, 1)
// kv [T, R + P] f32 · norm [R] f32 · q [T, H, N + P], absorbed [T, H, R + P] f32 · cache [S, R + P] C · cos, sin [·, P / 2] f32
// positions, slots [T] i32; a slot below 0 is not written · the sum as in norm.cu, pairs as in rope.cu; any T > 0, R, P
// moves (4 + size)·(R + P) + 12·H·P bytes a token; not measured: no GPU was available
#include "norm.cuh"
#include "rotate.cuh"

struct LatentShape {
    int heads, nope;  // of queries, and their part that is not rotated
    int rank, half;   // R, P / 2
    int halves;       // 1: pairs are (i, i + half)
};

// grid: (tokens, 2), 256 threads. N = 4 where R and R + P are multiples of 4, else 1
template <class C, int N>
__global__ void __launch_bounds__(THREADS)
    latent_rows(In<float> kv, In<float> norm, float eps, Out<float> q, Out<float> absorbed, LatentShape s, In<float> cos_table,
                In<float> sin_table, In<int> positions, In<int> slots, Out<C> cache) {
    SHARED(float, scratch, WARPS);
    long long token = blockIdx.x;
    int row_len = s.rank + 2 * s.half, position = positions[token];
    Ptr<const float> cosines = cos_table + (long long)position * s.half, sines = sin_table + (long long)position * s.half;
    if (blockIdx.y == 1) {
        int query_len = s.nope + 2 * s.half;
        for (int i = (int)threadIdx.x; i < s.heads * s.half; i += THREADS) {
            int pair = i % s.half;
            long long head = token * s.heads + i / s.half;
            Places p = places_of(pair, s.half, s.halves);
            Ptr<float> at = q + (head * query_len + s.nope), to = absorbed + (head * row_len + s.rank);
            float a = at[p.first], b = at[p.second];
            float2 v = rotated(a, b, cosines[pair], sines[pair]);
            at[p.first] = v.x, at[p.second] = v.y;
            to[p.first] = v.x, to[p.second] = v.y;
        }
        return;
    }
    int slot = slots[token];
    if (slot < 0) return;
    Ptr<const float> row = kv + token * row_len;
    Ptr<C> out = cache + (long long)slot * row_len;
    float mean = sum_of_squares<N>(row, 0.0f, s.rank, scratch) / (float)s.rank;
    scale_row<N>(row, 0.0f, 1.0f / sqrtf(mean + eps), norm, nullptr, s.rank, out);
    for (int pair = (int)threadIdx.x; pair < s.half; pair += THREADS) {
        Places p = places_of(pair, s.half, s.halves);
        float a = row[s.rank + p.first], b = row[s.rank + p.second];
        float2 v = rotated(a, b, cosines[pair], sines[pair]);
        out[s.rank + p.first] = Float<C>::from(v.x);
        out[s.rank + p.second] = Float<C>::from(v.y);
    }
}
