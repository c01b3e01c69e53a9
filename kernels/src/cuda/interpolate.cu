// interpolate: a table of vectors resized, bicubic as torch has it (a = -0.75, align_corners=False, border clamped)
// interpolate_corners: the same, bilinear and corner to corner (align_corners=True): four products in raster order
// table [H0, W0, D] f32 · out [h·w, D] f32 in raster order · one block per output vector · four sums along the width, then one
// along the height, as on the CPU
// moves up to 64 bytes per element of out, mostly from cache; not measured: no GPU was available
#include "common.cuh"

constexpr int THREADS = 256;
constexpr float A = -0.75f;

struct ResizeShape {
    int from_h, from_w, to_h, to_w, depth;
};

struct Taps {
    int index[4];
    float weight[4];
};

// The kernel for distances up to 1, and from 1 to 2.
__device__ __forceinline__ float inner(float x) { return ((A + 2.0f) * x - (A + 3.0f)) * x * x + 1.0f; }
__device__ __forceinline__ float outer(float x) { return ((A * x - 5.0f * A) * x + 8.0f * A) * x - 4.0f * A; }

__device__ __forceinline__ Taps taps(int index, int from, int to) {
    float source = (float)from / (float)to * ((float)index + 0.5f) - 0.5f;
    float floor = floorf(source), t = source - floor;
    Taps result;
#pragma unroll
    for (int i = 0; i < 4; i++) result.index[i] = (int)fminf(fmaxf(floor + (float)(i - 1), 0.0f), (float)(from - 1));
    result.weight[0] = outer(t + 1.0f), result.weight[1] = inner(t);
    result.weight[2] = inner(1.0f - t), result.weight[3] = outer(2.0f - t);
    return result;
}

__device__ __forceinline__ float weighted(const float (&w)[4], const float (&v)[4]) {
    return v[0] * w[0] + v[1] * w[1] + v[2] * w[2] + v[3] * w[3];
}

__global__ void __launch_bounds__(THREADS) interpolate(In<float> table, ResizeShape s, Out<float> out) {
    int pixel = (int)blockIdx.x;
    Taps y = taps(pixel / s.to_w, s.from_h, s.to_h), x = taps(pixel % s.to_w, s.from_w, s.to_w);
    for (int c = (int)threadIdx.x; c < s.depth; c += THREADS) {
        float rows[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float v[4];
#pragma unroll
            for (int j = 0; j < 4; j++) v[j] = table[((long long)y.index[i] * s.from_w + x.index[j]) * s.depth + c];
            rows[i] = weighted(x.weight, v);
        }
        out[(long long)pixel * s.depth + c] = weighted(y.weight, rows);
    }
}

struct Between {
    int first, second;
    float share;
};

// Where an output index falls between two of the table's, and how much there is of the second.
__device__ __forceinline__ Between between(int index, int from, int to) {
    float place = (float)index * (float)(from - 1) / (float)(to > 1 ? to - 1 : 1);
    float floor = floorf(place);
    int first = (int)fminf(floor, (float)(from - 1));
    return {first, first + 1 < from ? first + 1 : first, place - floor};
}

__global__ void __launch_bounds__(THREADS) interpolate_corners(In<float> table, ResizeShape s, Out<float> out) {
    int pixel = (int)blockIdx.x;
    Between y = between(pixel / s.to_w, s.from_h, s.to_h), x = between(pixel % s.to_w, s.from_w, s.to_w);
    float w[4] = {(1.0f - y.share) * (1.0f - x.share), (1.0f - y.share) * x.share, y.share * (1.0f - x.share), y.share * x.share};
    for (int c = (int)threadIdx.x; c < s.depth; c += THREADS) {
        float v[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int row = i < 2 ? y.first : y.second, column = i % 2 == 0 ? x.first : x.second;
            v[i] = table[((long long)row * s.from_w + column) * s.depth + c];
        }
        out[(long long)pixel * s.depth + c] = weighted(w, v);
    }
}
