// One row of attention by a warp, without tensor cores (attention_rows.cu, attention_expanded.cu): keys come in tiles of 32 at absolute positions, one
// for each lane, with a running maximum and sum; values of up to 512 columns, every 32nd for a lane.
#pragma once
#include "common.cuh"

constexpr int MAX_COLUMNS = 16;  // of 32

template <class C> __device__ __forceinline__ float dot(Ptr<const float> query, Ptr<const C> key, int len) {
    float sum = 0;
    for (int i = 0; i < len; i++) {
        float a = query[i];
        C b = key[i];
        sum = fmaf(a, to_float(b), sum);
    }
    return sum;
}

struct RowSums {
    float max = -1e30f, sum = 0, values[MAX_COLUMNS] = {};

    // The weight of this lane's key; all sums so far shrink to the new maximum.
    __device__ __forceinline__ float weigh(float score, bool is_there) {
        float new_max = fmaxf(max, warp_max(score)), shrink = fast_exp2(max - new_max);
        float weight = is_there ? fast_exp2(score - new_max) : 0.0f;
        sum = fmaf(sum, shrink, warp_sum(weight));
        max = new_max;
#pragma unroll
        for (int i = 0; i < MAX_COLUMNS; i++) values[i] *= shrink;
        return weight;
    }

    template <class C> __device__ __forceinline__ void add(float weight, Ptr<const C> value, int len) {
#pragma unroll
        for (int i = 0; i < MAX_COLUMNS; i++)
            if (i * 32 + lane_id() < len) {
                C v = value[i * 32 + lane_id()];
                values[i] = fmaf(weight, to_float(v), values[i]);
            }
    }
};
