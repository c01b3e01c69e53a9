// One small kernel for each named instruction and helper: it hands operands in and results out. One warp, unless said otherwise.
#include "common.cuh"

// a [32, 4], b [32, 2], d [32, 4]: the fragments of each lane.
template <class T> __global__ void mma(In<unsigned> a, In<unsigned> b, Out<float> d) {
    int lane = lane_id();
    unsigned fa[4], b0 = b[lane * 2], b1 = b[lane * 2 + 1];
    float fd[4];
    for (int i = 0; i < 4; i++) fa[i] = a[lane * 4 + i], fd[i] = d[lane * 4 + i];
    Float<T>::mma(fd, fa, b0, b1);
    for (int i = 0; i < 4; i++) d[lane * 4 + i] = fd[i];
}

// values [32, 8]: row r of the matrices lies at row order[r] of shared memory; out [32, 4].
template <int COUNT, bool TRANS> __global__ void load_matrices(In<bf16> values, In<int> order, Out<unsigned> out) {
    SHARED(bf16, rows, 32 * 8);
    int lane = lane_id();
    for (int i = lane; i < COUNT * 8 * 8; i += 32) {
        int row = order[i / 8];
        rows[row * 8 + i % 8] = values[i];
    }
    __syncwarp();
    int row = order[lane % (COUNT * 8)];
    unsigned r[COUNT];
    if (COUNT == 1) {
        if (TRANS) ldmatrix_x1_trans((unsigned(&)[1])r, rows + row * 8); else ldmatrix_x1((unsigned(&)[1])r, rows + row * 8);
    } else if (COUNT == 2) {
        if (TRANS) ldmatrix_x2_trans((unsigned(&)[2])r, rows + row * 8); else ldmatrix_x2((unsigned(&)[2])r, rows + row * 8);
    } else {
        if (TRANS) ldmatrix_x4_trans((unsigned(&)[4])r, rows + row * 8); else ldmatrix_x4((unsigned(&)[4])r, rows + row * 8);
    }
    for (int i = 0; i < COUNT; i++) out[lane * 4 + i] = r[i];
}

// Lane l copies 16 bytes of which l % 17 are read, in two groups; the first is waited for while the second is under way.
__global__ void copies(In<unsigned char> src, Out<unsigned char> out) {
    SHARED(unsigned char, tile, 64 * 16);
    int lane = lane_id();
    for (int group = 0; group < 2; group++) {
        cp_async16(tile + (group * 32 + lane) * 16, src + (group * 32 + lane) * 16, lane % 17);
        cp_async_commit();
    }
    cp_async_wait<1>();
    for (int i = 0; i < 16; i++) out[lane * 16 + i] = tile[lane * 16 + i];
    cp_async_wait<0>();
    for (int i = 0; i < 16; i++) out[(32 + lane) * 16 + i] = tile[(32 + lane) * 16 + i];
}

// out [n, 4]: bf16, f16, and both widened again.
__global__ void conversions(In<float> v, int n, Out<unsigned> out) {
    for (int i = lane_id(); i < n; i += 32) {
        float x = v[i];
        unsigned b = bf16_from_float(x), h = f16_from_float(x);
        out[i * 6 + 0] = b;
        out[i * 6 + 1] = h;
        out[i * 6 + 2] = __float_as_uint(bf16_to_float((unsigned short)b));
        out[i * 6 + 3] = __float_as_uint(f16_to_float((unsigned short)h));
        out[i * 6 + 4] = pack_bf16(x, 1.5f);
        out[i * 6 + 5] = pack_f16(x, 1.5f);
    }
}

// Two operands and a selector for each lane; out [32, 2].
__global__ void packed(In<unsigned> v, Out<unsigned> out) {
    int lane = lane_id();
    unsigned a = v[lane * 3], b = v[lane * 3 + 1], selector = v[lane * 3 + 2];
    out[lane * 2] = add_bf16x2(a, b);
    out[lane * 2 + 1] = __byte_perm(a, b, selector);
}

__global__ void powers(In<float> v, int n, Out<float> out) {
    for (int i = lane_id(); i < n; i += 32) out[i] = fast_exp2(v[i]);
}

// Each of the results of lane l at out[kind * 32 + l].
__global__ void exchanges(In<int> v, Out<int> out) {
    int lane = lane_id(), x = v[lane], kind = 0;
    auto put = [&](int result) { out[kind++ * 32 + lane] = result; };
    put(__shfl_sync(~0u, x, 5));
    put(__shfl_sync(~0u, x, lane + 3, 8));
    put(__shfl_xor_sync(~0u, x, 9));
    put(__shfl_xor_sync(~0u, x, 4, 8));
    put(__shfl_down_sync(~0u, x, 7));
    put(__shfl_down_sync(~0u, x, 3, 16));
    put(__shfl_up_sync(~0u, x, 7));
    put(__shfl_up_sync(~0u, x, 3, 16));
    put((int)__ballot_sync(~0u, x & 1));
    put(__any_sync(~0u, x == 1000));
    put(__all_sync(~0u, x < 1000));
    put(__reduce_add_sync(~0u, x));
    put(__reduce_min_sync(~0u, x));
    put(__reduce_max_sync(~0u, x));
    put((int)__match_any_sync(~0u, x % 3));
    // Two halves on ways of their own.
    if (lane < 16)
        put(__shfl_xor_sync(0xffffu, x, 1));
    else
        put(__reduce_add_sync(0xffff0000u, x));
}

// Blocks of 96 threads: votes at barriers, sums over the block, a barrier of two of the three warps.
__global__ void blocks(In<float> v, Out<float> out) {
    SHARED(float, scratch, 3);
    SHARED(float, scratch2, 3);
    SHARED(float, passed, 32);
    int thread = (int)threadIdx.x;
    float x = v[thread];
    float sum = block_sum<3>(x, scratch), top = block_max<3>(x, scratch2);
    int count = __syncthreads_count(thread < 40), any = __syncthreads_or(thread == 95), all = __syncthreads_and(thread < 95);
    if (warp_id() == 2) passed[lane_id()] = x;
    if (warp_id() != 1) barrier_sync(1, 64);
    float got = warp_id() == 0 ? (float)passed[lane_id()] : 0.0f;
    float results[6] = {sum, top, (float)count, (float)any, (float)all, got};
    for (int i = 0; i < 6; i++) out[i * 96 + thread] = results[i];
}

// counters [8]; out [32]: what each lane's addition found.
__global__ void atomics(Out<int> counters, Out<int> out) {
    int lane = lane_id();
    out[lane] = atomicAdd(counters + 0, lane);
    atomicMax(counters + 1, lane * 7 % 32);
    atomicMin(counters + 2, lane * 7 % 32);
    atomicOr(counters + 3, 1 << lane);
    if (lane == 3) atomicExch(&counters[4], 77);
    if (lane == 4) atomicCAS(counters + 5, 0, 55);
    if (lane == 5) atomicCAS(counters + 6, 1, 66);
    atomicSub(counters + 7, 1);
}

__global__ void random_words(In<unsigned> counter_and_key, Out<unsigned> out) {
    if (lane_id() != 0) return;
    for (int i = 0; i < 3; i++) {
        uint4 counter = load_vec<uint4>(counter_and_key + i * 8);
        uint2 key = load_vec<uint2>(counter_and_key + i * 8 + 4);
        store_vec(out + i * 4, philox(counter, key));
    }
}
