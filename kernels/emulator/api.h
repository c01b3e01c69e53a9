// What kernels, the runtime and the host side of the emulator agree on. Plain C layouts: kernels/src/cuda/emulated/ has the
// same structs in Rust.
#pragma once
#include <stdint.h>

namespace emu {

struct Dim {
    uint32_t x, y, z;
};

// A piece of memory that one pointer may reach. `shadow` has one byte for each byte: 0 not written yet, 1 written.
struct Region {
    char* start;
    uint64_t len;
    uint8_t* shadow;
    const char* name;
    // Bytes that threads read and wrote here, each as often as it was asked for.
    mutable uint64_t read, written;
};

// Where in a kernel's source something happened.
struct Site {
    const char* file;
    int line;
};

// One launch. `args[i]` points to the value of parameter i; pointers come with the region that they point into. The blocks of a
// cluster run at the same time; a cluster of one block is none.
struct Launch {
    Dim grid, block, cluster;
    uint32_t shared_bytes, shared_limit;
    uint64_t seed;
    const void* const* args;
    const Region* const* regions;
    const char* kernel;
    char* message;
    uint64_t message_len;
};

struct ParamInfo {
    uint32_t size, is_pointer;
};

// One thread of a block, as kernels see it. The runtime's own part follows it in memory.
struct Thread {
    Dim index, block, block_dim, grid_dim;
};

using WarpFn = void (*)(void* const* operands, uint32_t mask);

extern "C" {
// The thread that runs now.
extern __thread Thread* emu_self __attribute__((tls_model("initial-exec")));

// Ends the launch with a message. Only on a thread of a kernel.
[[noreturn]] void emu_fail(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));
[[noreturn]] void emu_fail_access(const Region* region, const void* at, uint64_t bytes, uint64_t align, bool write, Site site);

// Runs `body(closure)` on every thread of every block. 0, or 1 and a message.
int emu_run(const Launch* launch, void (*body)(void*), void* closure);

// A meeting of the lanes in `mask`: the last to come runs `fn` over all operands (null for lanes outside the mask).
void emu_warp(const char* name, WarpFn fn, void* operand, uint32_t mask, Site site);

// Barrier `id` of `threads` threads; 0 means the whole block. Returns the number of threads with `predicate`.
int emu_barrier(uint32_t id, uint32_t threads, bool predicate, Site site);

const Region* emu_shared(const void* key, uint64_t bytes, const char* name, Site site);
const Region* emu_dynamic_shared();

void emu_cp_async(const Region* to, char* dst, const Region* from, const char* src, uint32_t bytes, uint32_t valid, Site site);
void emu_cp_async_commit();
void emu_cp_async_wait(uint32_t groups);
uint32_t emu_lane();

// Barriers in shared memory, by their address.
void emu_mbarrier_init(const Region* region, char* bar, uint32_t count, Site site);
// Makes what this thread initialised known to other blocks of the cluster.
void emu_mbarrier_init_fence();
void emu_mbarrier_arrive(const Region* region, char* bar, uint32_t expected_bytes, Site site);
void emu_mbarrier_wait(const Region* region, char* bar, uint32_t parity, Site site);
// At the barrier that block `rank` of the cluster has at this place.
void emu_mbarrier_arrive_at(const Region* region, char* bar, uint32_t rank, Site site);
// To this place in every block of the mask, and to its barrier. Performed when nothing else can go on, which is as late as a device
// may, and sometimes before.
void emu_bulk_copy(const Region* to, char* dst, const Region* from, const char* src, uint32_t bytes, char* bar, uint32_t mask, Site site);

uint32_t emu_cluster_rank();
uint32_t emu_cluster_size();
void emu_cluster_arrive(Site site);
void emu_cluster_wait(Site site);

// A product of a warpgroup: `d` has n / 2 floats, which change at the wait. `widen` reads one 16-bit float.
uint64_t emu_wgmma_descriptor(const Region* region, const char* b, uint32_t k_step, uint32_t n_step, bool swizzle, Site site);
void emu_wgmma(float* d, uint32_t n, const uint32_t* a, uint64_t descriptor, float (*widen)(uint16_t), Site site);
void emu_wgmma_commit(Site site);
void emu_wgmma_wait(uint32_t groups, Site site);
}

}  // namespace emu
