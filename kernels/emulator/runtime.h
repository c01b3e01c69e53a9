// The state of one block that is being run.
#pragma once
#include "checked.h"
#include "fiber.h"
#include <deque>
#include <memory>
#include <string>
#include <vector>

namespace emu {

enum class State { Ready, InWarp, AtBarrier, AtMemoryBarrier, Done };

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

// A barrier in shared memory.
struct MemoryBarrier {
    char* at;
    uint32_t count, pending;
    int64_t bytes = 0;
    uint32_t phase = 0;
};

struct BulkCopy {
    Copy copy;
    MemoryBarrier* barrier;
};

struct SharedArray {
    const void* key;
    Region region;
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    Barrier barriers[16];
    uint32_t alive = 0;
    void* scheduler = nullptr;
    void (*body)(void*) = nullptr;
    void* closure = nullptr;
    uint64_t random = 1;
    bool failed = false;
    const Launch* launch = nullptr;
    // Shared memory: the dynamic part first, then arrays as they are first met.
    Region dynamic{};
    std::deque<SharedArray> arrays;
    uint64_t shared_used = 0;
    std::deque<MemoryBarrier> memory_barriers;
    std::vector<BulkCopy> bulk_copies;

    uint64_t next_random() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        return random;
    }
};

extern thread_local Block* block;

inline Fiber* self() { return (Fiber*)emu_self; }

// Gives way to the scheduler, until made ready again.
void yield();
// Waits in `state` for the others of an operation.
void wait_in(State state, const char* op, Site site);

// A meeting of the 128 threads of a warpgroup: the last to come runs `fn` on all operands.
void meet_group(Fiber* const* members, const char* name, WarpFn fn, void* operand, Site site);

// Performs one bulk copy, if there is one.
bool advance_bulk_copies();

// The shared memory of this thread of the host, for addresses in descriptors.
struct SharedMemory {
    char* data;
    uint8_t* shadow;
    uint64_t len;
};
SharedMemory shared_memory();

}  // namespace emu
