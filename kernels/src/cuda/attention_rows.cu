// attend_rows: out[t, h] = Σ_p softmax_p(scale · q[t, h] · k[p]) v[p], any widths, no tensor cores      one warp per row (t, h)
// q, out f32 · keys, values C (f32, bf16, f16): in pages, or in place for packed segments · sums in f32 · DV up to 512
// 2·(D + DV) FLOP and size·(D + DV) bytes for each row and key: for caches in f32 and for widths that attention.cu has no
// instance of; not measured: no GPU was available
//
// A row may see the last `window` keys only, and its head may have a sink: one more weight in the sum, without a value.
// A row is never split, so that its bits depend on what it sees alone.
#include "attention_rows.cuh"

constexpr int WARPS = 4;

struct RowsShape {
    int tokens, items, heads, rep;  // rep heads share a key head
    int d, dv;
    int q_stride;                   // elements from one token to the next
    int key_stride, value_stride;   // from one slot to the next
    int key_head, value_head;       // from one key head to the next
    int block_size;                 // 0: packed, key p of an item is row cu_seqlens[item] + p, and all tokens see all keys
    int window;                     // keys that a row sees at most: itself and those before it; 0x7fffffff: all
    float scale;                    // times log2(e)
};

// The last item that begins at or before a token.
__device__ __forceinline__ int item_of(Ptr<const int> cu_seqlens, int items, int token) {
    int low = 0, high = items - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2, start = cu_seqlens[middle];
        if (start <= token) low = middle;
        else high = middle - 1;
    }
    return low;
}

// grid: rows / 4, 128 threads
template <class C>
__global__ void __launch_bounds__(WARPS * 32)
    attend_rows(In<float> q, In<C> keys, In<C> values, In<int> cu_seqlens, In<int> context_lens, In<int> tables, In<int> cu_blocks,
                In<int> selected, In<float> sinks, RowsShape s, Out<float> out) {
    SHARED(float, weights, WARPS * 32);
    SHARED(int, slots, WARPS * 32);
    int row = (int)blockIdx.x * WARPS + warp_id(), lane = lane_id(), mine = warp_id() * 32;
    if (row >= s.tokens * s.heads) return;
    int token = row / s.heads, head = row % s.heads, key_head = head / s.rep;
    int item = item_of(cu_seqlens, s.items, token), start = cu_seqlens[item], visible, table = 0;
    if (selected != nullptr && selected[item] == 0) return;
    if (s.block_size) {
        visible = context_lens[item] + token - start + 1;
        table = cu_blocks[item];
    } else {
        visible = cu_seqlens[item + 1] - start;
    }
    Ptr<const float> query = q + ((long long)token * s.q_stride + (long long)head * s.d);
    Ptr<const C> first_key = keys + (long long)key_head * s.key_head, first_value = values + (long long)key_head * s.value_head;

    // Without one: a weight of 0, beside which the others keep their bits. Read here, where a register is free for it.
    float sink = sinks != nullptr ? sinks[head] * 1.44269504f : -1e30f;
    RowSums sums;
    int begin = max(visible - s.window, 0);
    for (int first = begin / 32 * 32; first < visible; first += 32) {
        int position = first + lane, slot = start + position;
        float score = -1e30f;
        bool is_there = position >= begin && position < visible;
        if (is_there) {
            if (s.block_size) slot = tables[table + position / s.block_size] * s.block_size + position % s.block_size;
            score = dot(query, first_key + (long long)slot * s.key_stride, s.d) * s.scale;
        }
        weights[mine + lane] = sums.weigh(score, is_there);
        slots[mine + lane] = slot;
        __syncwarp();
        int count = min(32, visible - first);
        for (int k = max(begin - first, 0); k < count; k++) sums.add(weights[mine + k], first_value + (long long)slots[mine + k] * s.value_stride, s.dv);
        // The next tile writes over these.
        __syncwarp();
    }
    float top = fmaxf(sums.max, sink), times = fast_exp2(sums.max - top), by = fmaf(sums.sum, times, fast_exp2(sink - top));
    Ptr<float> result = out + (long long)row * s.dv;
#pragma unroll
    for (int i = 0; i < MAX_COLUMNS; i++)
        if (i * 32 + lane < s.dv) result[i * 32 + lane] = sums.values[i] * times / by;
}
