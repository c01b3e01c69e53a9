// The rotation of one pair of dimensions by the angle of a position (rope.cu, latents.cu).
#pragma once
#include "common.cuh"

// Where the two of a pair are, from the first rotated dimension on: `halves` are (i, i + half), else they are neighbours.
struct Places {
    int first, second;
};
__device__ __forceinline__ Places places_of(int pair, int half, bool halves) {
    return halves ? Places{pair, pair + half} : Places{2 * pair, 2 * pair + 1};
}

// (a, b) becomes (a cos - b sin, b cos + a sin).
__device__ __forceinline__ float2 rotated(float a, float b, float cos, float sin) {
    return make_float2(a * cos - b * sin, b * cos + a * sin);
}
