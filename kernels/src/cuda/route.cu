// route: the top_k best experts of each token, and their weights                                       one warp per token t
// logits [T, E] f32 · bias [E] f32 or none · ids [T, k] i32 · weights [T, k] f32 · any T > 0, E
// moves 4·T·E bytes; not measured: no GPU was available
//
// score = softmax or sigmoid of the logits. Chosen by score + bias, in falling order, ties by the lower expert, within the
// top_groups best groups. Weights are the scores without bias, over (their sum + 1e-20) if `normalize`, times `scale`.
#include "common.cuh"

constexpr int WARPS = 4;

struct RouteShape {
    int tokens, experts, top_k, groups, top_groups;
    int sigmoid, sum_of_top_two, normalize;  // 0 or 1
    float scale;
};

// The better of two candidates: the larger value, the lower place of equals; NaN is never larger.
__device__ __forceinline__ bool is_better(float a, int a_place, float b, int b_place) {
    bool a_is_none = a != a, b_is_none = b != b;
    if (a > b || (b_is_none && !a_is_none)) return true;
    return (a == b || (a_is_none && b_is_none)) && a_place < b_place;
}

__device__ __forceinline__ void score(Ptr<const float> logits, const RouteShape& s, Ptr<float> scores) {
    float max = minus_infinity(), sum = 0;
    for (int e = lane_id(); e < s.experts; e += 32) {
        float v = logits[e];
        max = fmaxf(max, v);
    }
    max = warp_max(max);
    for (int e = lane_id(); e < s.experts; e += 32) {
        float v = logits[e];
        v = s.sigmoid ? sigmoid(v) : expf(v - max);
        scores[e] = v;
        sum += v;
    }
    if (s.sigmoid) return;
    sum = warp_sum(sum);
    for (int e = lane_id(); e < s.experts; e += 32) scores[e] = scores[e] / sum;
}

// Experts of all but the best groups become minus infinity. `worth`: one value for each group.
__device__ __forceinline__ void mask_groups(Ptr<float> biased, const RouteShape& s, Ptr<float> worth) {
    int size = s.experts / s.groups;
    for (int g = lane_id(); g < s.groups; g += 32) {
        float first = minus_infinity(), second = first;
        for (int i = 0; i < size; i++) {
            float v = biased[g * size + i];
            if (v > first) {
                second = first, first = v;
            } else {
                second = fmaxf(second, v);
            }
        }
        worth[g] = s.sum_of_top_two ? first + second : first;
    }
    __syncwarp();
    for (int g = lane_id(); g < s.groups; g += 32) {
        int before = 0;
        float own = worth[g];
        for (int other = 0; other < s.groups; other++) {
            float v = worth[other];
            before += v > own || (v == own && other < g);
        }
        if (before >= s.top_groups)
            for (int i = 0; i < size; i++) biased[g * size + i] = minus_infinity();
    }
    __syncwarp();
}

// The place of the best value, the same in every lane.
__device__ __forceinline__ int best(Ptr<const float> values, int count) {
    float value = __uint_as_float(0x7fffffffu);
    int place = 1 << 30;
    for (int i = lane_id(); i < count; i += 32) {
        float v = values[i];
        if (is_better(v, i, value, place)) value = v, place = i;
    }
    for (int step = 16; step; step /= 2) {
        float other = __shfl_xor_sync(~0u, value, step);
        int other_place = __shfl_xor_sync(~0u, place, step);
        if (is_better(other, other_place, value, place)) value = other, place = other_place;
    }
    return place;
}

// grid: tokens / 4, 128 threads; shared: for each warp 2 E + groups floats
__global__ void __launch_bounds__(WARPS * 32)
    route(In<float> logits, In<float> bias, RouteShape s, Out<int> ids, Out<float> weights) {
    DYNAMIC_SHARED(float, memory);
    int token = (int)blockIdx.x * WARPS + warp_id();
    if (token >= s.tokens) return;
    Ptr<float> scores = memory + warp_id() * (2 * s.experts + s.groups);
    Ptr<float> biased = scores + s.experts, worth = biased + s.experts;
    score(logits + (long long)token * s.experts, s, scores);
    for (int e = lane_id(); e < s.experts; e += 32) {
        float v = scores[e];
        if (bias != nullptr) v += bias[e];
        biased[e] = v;
    }
    __syncwarp();
    if (s.top_groups < s.groups) mask_groups(biased, s, worth);

    // Choice j stays with lane j % 32, which writes it again when the sum is known.
    Ptr<float> out = weights + (long long)token * s.top_k;
    float sum = 0;
    for (int j = 0; j < s.top_k; j++) {
        int expert = best(biased, s.experts);
        float v = scores[expert];
        sum += v;
        if (lane_id() == j % 32) {
            ids[(long long)token * s.top_k + j] = expert;
            out[j] = v;
        }
        if (lane_id() == 0) biased[expert] = minus_infinity();
        __syncwarp();
    }
    float factor = s.normalize ? s.scale / (sum + 1e-20f) : s.scale;
    for (int j = lane_id(); j < s.top_k; j += 32) out[j] = out[j] * factor;
}
