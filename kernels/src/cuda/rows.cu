// move_rows:  dst[dst_rows[i], :] = round(src[src_rows[i], :])     no src_rows or no dst_rows: row i       one block per row i
// copy_slice: dst[t, h, b .. b + len] = src[t, h, a .. a + len]    a source of one head goes to every head; one block per token t
// add_rows:   dst[rows[i], h, b .. b + len] += scale · src[i, h, :]     rows differ, no rows: row i; the product is rounded; one block per row i
// src [·, D] S · dst [·, D] D, to nearest even · N = 4 where the width % 4 == 0, else 1 · a dst row below 0 is skipped
// moves (size of S + size of D)·rows·D bytes; not measured: no GPU was available
#include "common.cuh"

constexpr int THREADS = 256;

template <class S, class D, int N>
__global__ void __launch_bounds__(THREADS)
    move_rows(In<S> src, In<int> src_rows, int width, Out<D> dst, In<int> dst_rows) {
    int i = (int)blockIdx.x;
    int from = i, to = i;
    if (src_rows != nullptr) from = src_rows[i];
    if (dst_rows != nullptr) to = dst_rows[i];
    if (to < 0) return;
    Ptr<const S> row = src + (long long)from * width;
    Ptr<D> out = dst + (long long)to * width;
    for (int j = (int)threadIdx.x * N; j < width; j += THREADS * N) {
        float v[N];
        Wide<N>::load(row + j, v);
        Wide<N>::store(out + j, v);
    }
}

struct SliceShape {
    int heads, src_heads;             // of dst, of src: 1 or the same
    int src_len, src_offset;          // of a head
    int dst_len, dst_offset, len;
};

__global__ void __launch_bounds__(THREADS) copy_slice(In<float> src, SliceShape s, Out<float> dst) {
    long long token = blockIdx.x;
    for (int i = (int)threadIdx.x; i < s.heads * s.len; i += THREADS) {
        int head = i / s.len, j = i % s.len;
        int src_head = s.src_heads == 1 ? 0 : head;
        float v = src[(token * s.src_heads + src_head) * s.src_len + s.src_offset + j];
        dst[(token * s.heads + head) * s.dst_len + s.dst_offset + j] = v;
    }
}

struct AddShape {
    int heads, src_len;               // of src and dst, of a head of src
    int dst_len, dst_offset;
};

__global__ void __launch_bounds__(THREADS)
    add_rows(In<float> src, In<int> rows, float scale, AddShape s, Out<float> dst) {
    long long i = blockIdx.x, row = i;
    if (rows != nullptr) row = rows[(int)blockIdx.x];
    for (int e = (int)threadIdx.x; e < s.heads * s.src_len; e += THREADS) {
        int head = e / s.src_len, j = e % s.src_len;
        long long at = (row * s.heads + head) * s.dst_len + s.dst_offset + j;
        float v = src[(i * s.heads + head) * s.src_len + j];
        dst[at] = dst[at] + scale * v;
    }
}
