// The state of the blocks that are being run: those of one cluster, which is one block where a launch has no clusters.
#pragma once
#include "checked.h"
#include "fiber.h"
#include <deque>
#include <memory>
#include <string>
#include <vector>

namespace emu {

enum class State { Ready, InWarp, AtBarrier, AtMemoryBarrier, AtClusterBarrier, Done };

// One asynchronous copy of at most 16 bytes, not yet performed.
struct Copy {
    const Region* to;
    char* dst;
    const char* src;
    uint32_t bytes, valid;
};

// One product of a warpgroup, for one lane.
struct Product {
    float* d;
    uint32_t n, a[4];
    uint64_t descriptor;
    float (*widen)(uint16_t);
};

struct Warp;
struct Block;
struct MemoryBarrier;

struct Fiber {
    Thread thread;  // First: `emu_self` points here.
    void* sp = nullptr;
    uint32_t id = 0;
    Warp* warp = nullptr;
    State state = State::Ready;
    // What it waits for: in messages.
    const char* op = nullptr;
    Site site{};
    void* operand = nullptr;
    WarpFn fn = nullptr;
    int barrier = -1;
    int result = 0;
    std::vector<Copy> copies;
    std::deque<std::vector<Copy>> groups;
    MemoryBarrier* waits_for = nullptr;
    // Arrived at the barrier of the cluster and has not waited since; all others have arrived as well.
    bool at_cluster = false, may_pass = false;
    std::vector<Product> products;
    std::deque<std::vector<Product>> product_groups;
};

// Lanes of one warp that wait for each other.
struct Meeting {
    const char* name;
    WarpFn fn;
    uint32_t mask, arrived;
    Site site;
    void* operands[32];
};

struct Warp {
    Block* block = nullptr;
    Fiber* lanes[32] = {};
    uint32_t count = 0;
    // Lanes that have exited, and that wait at a barrier of the block.
    uint32_t exited = 0, at_barrier = 0;
    std::vector<Meeting> meetings;
};

struct Barrier {
    uint32_t arrived = 0, expected = 0, sum = 0;
    Site site{};
};

// A barrier in shared memory. `bytes` may be below zero for a while: copies of other blocks arrive when they like.
struct MemoryBarrier {
    Block* block;
    char* at;
    uint32_t count, pending;
    int64_t bytes = 0;
    uint32_t phase = 0;
    // Who initialised it, until a fence made that known to others.
    const Fiber* unfenced = nullptr;
    // What last brought it bytes, or announced them.
    Site site{};
};

struct SharedArray {
    const void* key;
    Region region;
};

struct Cluster;

struct Block {
    Cluster* cluster = nullptr;
    uint32_t rank = 0;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    Barrier barriers[16];
    uint32_t alive = 0;
    // Shared memory: the dynamic part first, then arrays as they are first met, at the same places in every block of a cluster.
    char* shared = nullptr;
    uint8_t* shadow = nullptr;
    Region dynamic{};
    std::deque<SharedArray> arrays;
    std::deque<MemoryBarrier> memory_barriers;
};

// What is under way to the shared memory of a block, and reaches it some time: a bulk copy, or without bytes an arrival at a barrier.
struct Transfer {
    Block* target;
    Copy copy;
    MemoryBarrier* barrier;
    Site site;
};

struct Cluster {
    std::deque<Block> blocks;
    void* scheduler = nullptr;
    void (*body)(void*) = nullptr;
    void* closure = nullptr;
    uint64_t random = 1;
    bool failed = false;
    const Launch* launch = nullptr;
    // Of each block.
    uint64_t shared_used = 0;
    std::vector<Transfer> transfers;
    // Threads of all blocks that have not exited, and those at the barrier of the cluster.
    uint32_t alive = 0, arrived = 0;

    uint64_t next_random() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        return random;
    }
};

// The cluster of this thread of the host, and the block of the thread that runs now.
extern thread_local Cluster* cluster;
extern thread_local Block* block;

inline Fiber* self() { return (Fiber*)emu_self; }

// Gives way to the scheduler, until made ready again.
void yield();
// Waits in `state` for the others of an operation.
void wait_in(State state, const char* op, Site site);

// A meeting of the 128 threads of a warpgroup: the last to come runs `fn` on all operands.
void meet_group(Fiber* const* members, const char* name, WarpFn fn, void* operand, Site site);

// The barrier at this place in the current block.
MemoryBarrier* find_barrier(char* at, Site site);

// Ends the phase of a barrier if everything has come, and wakes who waited for that.
void settle(MemoryBarrier* b);

// Performs one transfer, if there is one.
bool advance_transfers();

// When the last thread of the current block has exited: nothing may be under way to it any more.
void check_departure();

// When all threads have exited or all wait: a message about bytes that came to a barrier without being expected, if there are any.
bool report_unexpected_bytes();

// Ends the phase of the cluster's barrier if all threads that are left have arrived.
void settle_cluster();

// The shared memory of the current block, for addresses in descriptors.
struct SharedMemory {
    char* data;
    uint8_t* shadow;
    uint64_t len;
};
SharedMemory shared_memory();

// Ends the launch with a message that is no thread's.
void fail_launch(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace emu
