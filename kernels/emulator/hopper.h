// The named instructions of hopper.cuh on the CPU.
#pragma once
#include "ptx.h"

template <class T> void mbarrier_init(emu::Checked<T> bar, unsigned count, EMU_SITE) {
    bar.require({file, line});
    emu::emu_mbarrier_init(bar.region, (char*)bar.at, count, {file, line});
}
inline void mbarrier_init_fence() { emu::emu_mbarrier_init_fence(); }
template <class T> void mbarrier_arrive(emu::Checked<T> bar, EMU_SITE) {
    bar.require({file, line});
    emu::emu_mbarrier_arrive(bar.region, (char*)bar.at, 0, {file, line});
}
template <class T> void mbarrier_arrive_expect(emu::Checked<T> bar, unsigned bytes, EMU_SITE) {
    bar.require({file, line});
    emu::emu_mbarrier_arrive(bar.region, (char*)bar.at, bytes, {file, line});
}
template <class T> void mbarrier_wait(emu::Checked<T> bar, unsigned parity, EMU_SITE) {
    bar.require({file, line});
    emu::emu_mbarrier_wait(bar.region, (char*)bar.at, parity, {file, line});
}
template <class T, class U, class B>
void bulk_copy(emu::Checked<T> dst, emu::Checked<U> src, unsigned bytes, emu::Checked<B> bar, EMU_SITE) {
    dst.require({file, line}), src.require({file, line}), bar.require({file, line});
    emu::emu_bulk_copy(dst.region, (char*)dst.at, src.region, (const char*)src.at, bytes, (char*)bar.at, 1u << emu::emu_cluster_rank(), {file, line});
}
inline void fence_async_proxy() {}

inline unsigned cluster_rank() { return emu::emu_cluster_rank(); }
inline unsigned cluster_size() { return emu::emu_cluster_size(); }
inline void cluster_arrive(EMU_SITE) { emu::emu_cluster_arrive({file, line}); }
inline void cluster_wait(EMU_SITE) { emu::emu_cluster_wait({file, line}); }

// A place in the shared memory of a block of the cluster.
template <class T> struct ClusterPtr {
    emu::Checked<T> here;   // the same place in this block
    unsigned rank;
};
template <class T> ClusterPtr<T> map_to_rank(emu::Checked<T> p, unsigned rank, EMU_SITE) {
    p.require({file, line});
    return {p, rank};
}
template <class T> void mbarrier_arrive_at(ClusterPtr<T> bar, EMU_SITE) {
    emu::emu_mbarrier_arrive_at(bar.here.region, (char*)bar.here.at, bar.rank, {file, line});
}
template <class T> void mbarrier_wait_cluster(emu::Checked<T> bar, unsigned parity, EMU_SITE) { mbarrier_wait(bar, parity, file, line); }
template <class T, class U, class B>
void bulk_copy_multicast(emu::Checked<T> dst, emu::Checked<U> src, unsigned bytes, emu::Checked<B> bar, unsigned short mask, EMU_SITE) {
    dst.require({file, line}), src.require({file, line}), bar.require({file, line});
    emu::emu_bulk_copy(dst.region, (char*)dst.at, src.region, (const char*)src.at, bytes, (char*)bar.at, mask, {file, line});
}

template <class T> unsigned long long wgmma_descriptor(emu::Checked<T> b, unsigned k_step, unsigned n_step, bool swizzle, EMU_SITE) {
    b.require({file, line});
    return emu::emu_wgmma_descriptor(b.region, (const char*)b.at, k_step, n_step, swizzle, {file, line});
}
template <int N> void registers_down() { static_assert(N % 8 == 0 && N >= 24 && N <= 256); }
template <int N> void registers_up() { static_assert(N % 8 == 0 && N >= 24 && N <= 256); }
inline void wgmma_fence() {}
inline void wgmma_commit(EMU_SITE) { emu::emu_wgmma_commit({file, line}); }
template <int N> void wgmma_wait(EMU_SITE) { emu::emu_wgmma_wait(N, {file, line}); }

#define EMU_WGMMA(n)                                                                                                          \
    inline void wgmma_m64n##n##k16_bf16(float (&d)[n / 2], const unsigned (&a)[4], unsigned long long b, EMU_SITE) {           \
        emu::emu_wgmma(d, n, a, b, emu::from_bf16, {file, line});                                                              \
    }                                                                                                                          \
    inline void wgmma_m64n##n##k16_f16(float (&d)[n / 2], const unsigned (&a)[4], unsigned long long b, EMU_SITE) {            \
        emu::emu_wgmma(d, n, a, b, emu::from_f16, {file, line});                                                               \
    }
EMU_WGMMA(8)
EMU_WGMMA(16)
EMU_WGMMA(32)
EMU_WGMMA(64)
EMU_WGMMA(128)
EMU_WGMMA(192)
#undef EMU_WGMMA
