// Runs the blocks of a launch, one after the other, each thread on its own stack, in an order that a seed chooses: a warp runs
// as far as it can while others have not begun, so that what is missing between them shows.
#include "runtime.h"
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>

namespace emu {

extern "C" __thread Thread* emu_self = nullptr;
thread_local Block* block = nullptr;

constexpr size_t STACK = 128 << 10;
constexpr size_t GUARD = 4096;
// What addresses in descriptors reach.
constexpr size_t SHARED = 256 << 10;

// Memory that outlives launches: stacks and shared memory of this thread of the host.
struct Pool {
    char* stacks = nullptr;
    size_t num_stacks = 0;
    char* shared;
    uint8_t* shadow;
    Pool() : shared((char*)aligned_alloc(1024, SHARED)), shadow((uint8_t*)calloc(SHARED, 1)) {}
    ~Pool() {
        if (stacks) munmap(stacks, num_stacks * STACK);
        free(shared);
        free(shadow);
    }
    bool reserve(size_t threads) {
        if (threads <= num_stacks) return true;
        if (stacks) munmap(stacks, num_stacks * STACK);
        void* p = mmap(nullptr, threads * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        stacks = p == MAP_FAILED ? nullptr : (char*)p;
        num_stacks = stacks ? threads : 0;
        // The lowest page of a stack stops it from growing into its neighbour.
        for (size_t i = 0; i < num_stacks; i++) mprotect(stacks + i * STACK, GUARD, PROT_NONE);
        return stacks != nullptr;
    }
};
static thread_local Pool pool;

static void message(const char* format, ...) {
    const Launch* l = block->launch;
    va_list args;
    va_start(args, format);
    vsnprintf(l->message, l->message_len, format, args);
    va_end(args);
    block->failed = true;
}

static std::string who(const Fiber& f) {
    char text[128];
    const Dim &b = f.thread.block, &t = f.thread.index;
    snprintf(text, sizeof text, "thread (%u, %u, %u) of block (%u, %u, %u)", t.x, t.y, t.z, b.x, b.y, b.z);
    return text;
}

static std::string place(Site site) { return std::string(site.file ? site.file : "?") + ":" + std::to_string(site.line); }

void yield() {
    Fiber* f = self();
    emu_switch(&f->sp, block->scheduler);
}

void wait_in(State state, const char* op, Site site) {
    Fiber* f = self();
    f->state = state, f->op = op, f->site = site;
    yield();
}

void meet_group(Fiber* const* members, const char* name, WarpFn fn, void* operand, Site site) {
    Fiber* f = self();
    f->fn = fn, f->operand = operand;
    void* operands[128] = {};
    bool complete = true;
    for (uint32_t i = 0; i < 128; i++) {
        Fiber* other = members[i];
        operands[i] = other->operand;
        if (other == f) continue;
        if (other->state == State::Done) emu_fail(site, "divergent warpgroup: %s waits for thread %u, which has exited", name, i);
        // Others may be busy among the lanes of their own warp.
        if (other->state != State::InWarp || other->fn != fn || other->site.line != site.line) complete = false;
    }
    if (!complete) return wait_in(State::InWarp, name, site);
    fn(operands, ~0u);
    for (uint32_t i = 0; i < 128; i++) members[i]->state = State::Ready, members[i]->fn = nullptr;
    yield();
}

SharedMemory shared_memory() { return {pool.shared, pool.shadow, SHARED}; }

extern "C" {

void emu_fail(Site site, const char* format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    message("%s: %s, %s", place(site).c_str(), text, who(*self()).c_str());
    self()->state = State::Done;
    // The scheduler sees the failure and never comes back.
    for (;;) yield();
}

void emu_fail_access(const Region* region, const void* at, uint64_t bytes, uint64_t align, bool write, Site site) {
    long offset = (const char*)at - region->start;
    const char* verb = write ? "write" : "read";
    if (offset < 0 || (uint64_t)offset + bytes > region->len)
        emu_fail(site, "out-of-bounds %s of %lu bytes at offset %ld of %s, which has %lu", verb, (unsigned long)bytes, offset,
                 region->name, (unsigned long)region->len);
    if ((uint64_t)at % align)
        emu_fail(site, "misaligned %s of %lu bytes at offset %ld of %s", verb, (unsigned long)bytes, offset, region->name);
    emu_fail(site, "read of unwritten memory, %lu bytes at offset %ld of %s", (unsigned long)bytes, offset, region->name);
}

uint32_t emu_lane() { return self()->id % 32; }

void emu_warp(const char* name, WarpFn fn, void* operand, uint32_t mask, Site site) {
    Fiber* f = self();
    Warp& w = *f->warp;
    uint32_t lane = f->id % 32, bit = 1u << lane;
    if (!(mask & bit)) emu_fail(site, "%s: the mask %08x lacks the calling lane %u", name, mask, lane);
    uint32_t exist = w.count < 32 ? (1u << w.count) - 1 : ~0u;
    if (mask & ~exist) emu_fail(site, "%s: the mask %08x names lane %d, which the block does not have", name, mask, __builtin_ctz(mask & ~exist));
    if (mask & w.exited) emu_fail(site, "divergent warp: %s waits for lane %d, which has exited", name, __builtin_ctz(mask & w.exited));
    if (mask & w.at_barrier) {
        Fiber* other = w.lanes[__builtin_ctz(mask & w.at_barrier)];
        emu_fail(site, "divergent warp: %s while lane %u waits at the barrier of %s", name, other->id % 32, place(other->site).c_str());
    }
    Meeting* meeting = nullptr;
    for (Meeting& m : w.meetings)
        if (m.mask & mask) {
            if (m.fn != fn || m.mask != mask || m.site.line != site.line)
                emu_fail(site, "divergent warp: %s with mask %08x while others are at %s with mask %08x of %s", name, mask, m.name, m.mask,
                         place(m.site).c_str());
            meeting = &m;
            break;
        }
    if (!meeting) {
        w.meetings.push_back({name, fn, mask, 0, site, {}});
        meeting = &w.meetings.back();
    }
    meeting->arrived |= bit;
    meeting->operands[lane] = operand;
    if (meeting->arrived != mask) return wait_in(State::InWarp, name, site);
    // The operation may fail, and then nobody looks at the warp again.
    fn(meeting->operands, mask);
    *meeting = w.meetings.back();
    w.meetings.pop_back();
    for (uint32_t rest = mask; rest; rest &= rest - 1) w.lanes[__builtin_ctz(rest)]->state = State::Ready;
    // Who came last has no advantage.
    yield();
}

int emu_barrier(uint32_t id, uint32_t threads, bool predicate, Site site) {
    Fiber* f = self();
    if (id >= 16) emu_fail(site, "barrier %u: there are 16", id);
    Barrier& b = block->barriers[id];
    uint32_t expected = threads ? threads : (uint32_t)block->fibers.size();
    if (b.arrived && id == 0 && (b.site.line != site.line || strcmp(b.site.file, site.file)))
        emu_fail(site, "divergent barrier: others wait at %s", place(b.site).c_str());
    if (b.arrived && b.expected != expected)
        emu_fail(site, "barrier %u: %u threads here, %u at %s", id, expected, b.expected, place(b.site).c_str());
    if (id == 0 && block->alive < block->fibers.size())
        emu_fail(site, "divergent barrier: %u threads of the block have exited", (unsigned)block->fibers.size() - block->alive);
    b.site = site, b.expected = expected;
    b.arrived++, b.sum += predicate;
    f->barrier = (int)id;
    f->warp->at_barrier |= 1u << f->id % 32;
    for (const Meeting& m : f->warp->meetings)
        if (m.mask >> f->id % 32 & 1)
            emu_fail(site, "divergent warp: a barrier while others wait for this lane in %s of %s", m.name, place(m.site).c_str());
    if (b.arrived < b.expected) {
        wait_in(State::AtBarrier, "barrier", site);
        return f->result;
    }
    int sum = (int)b.sum;
    b = Barrier{};
    for (Fiber& other : block->fibers)
        if (other.barrier == (int)id) {
            other.barrier = -1, other.result = sum;
            other.warp->at_barrier &= ~(1u << other.id % 32);
            other.state = State::Ready;
        }
    yield();
    return sum;
}

static Region carve(uint64_t bytes, const char* name, Site site) {
    uint64_t start = (block->shared_used + 127) / 128 * 128;
    // 128 bytes that nobody has, so that one too far is not somebody else's first.
    if (start + bytes + 128 > SHARED || block->shared_used + bytes > block->launch->shared_limit)
        emu_fail(site, "%lu bytes of shared memory for %s exceed the limit of %u", (unsigned long)bytes, name, block->launch->shared_limit);
    block->shared_used = start + bytes + 128;
    return {pool.shared + start, bytes, pool.shadow + start, name};
}

const Region* emu_shared(const void* key, uint64_t bytes, const char* name, Site site) {
    for (SharedArray& array : block->arrays)
        if (array.key == key) return &array.region;
    block->arrays.push_back({key, carve(bytes, name, site)});
    return &block->arrays.back().region;
}

const Region* emu_dynamic_shared() { return &block->dynamic; }

void emu_cp_async(const Region* to, char* dst, const Region* from, const char* src, uint32_t bytes, uint32_t valid, Site site) {
    if (valid > bytes) emu_fail(site, "cp.async of %u bytes, of which %u are read", bytes, valid);
    check(to, dst, bytes, bytes, true, site);
    if (valid) check(from, src, valid, bytes, false, site);
    // Nobody may read the destination until the copy is waited for.
    unwritten(to, dst, bytes);
    self()->copies.push_back({to, dst, src, bytes, valid});
}

void emu_cp_async_commit() {
    Fiber* f = self();
    f->groups.push_back(std::move(f->copies));
    f->copies.clear();
}

void emu_cp_async_wait(uint32_t groups) {
    Fiber* f = self();
    while (f->groups.size() > groups) {
        for (const Copy& c : f->groups.front()) {
            memcpy(c.dst, c.src, c.valid);
            memset(c.dst + c.valid, 0, c.bytes - c.valid);
            memset(c.to->shadow + (c.dst - c.to->start), 1, c.bytes);
        }
        f->groups.pop_front();
    }
}

}  // extern "C"

static void entry() {
    block->body(block->closure);
    Fiber* f = self();
    // A block whose threads exit while others wait is divergent code that happens to work on some hardware.
    const Barrier& b = block->barriers[0];
    if (b.arrived) emu_fail(b.site, "divergent barrier: threads wait here while another exits");
    if (!f->products.empty() || !f->product_groups.empty()) emu_fail(f->site, "products of a warpgroup that nobody waited for");
    for (const Meeting& m : f->warp->meetings)
        if (m.mask >> f->id % 32 & 1) emu_fail(m.site, "divergent warp: %s waits for lane %u, which exits", m.name, f->id % 32);
    f->warp->exited |= 1u << f->id % 32;
    f->state = State::Done;
    block->alive--;
    for (;;) yield();
}

static void run(Fiber& f) {
    emu_self = &f.thread;
    emu_switch(&block->scheduler, f.sp);
}

// Every lane of a warp that can run, once, from a random one on.
static bool step(Warp& w) {
    bool progress = false;
    uint32_t first = (uint32_t)(block->next_random() % w.count);
    for (uint32_t i = 0; i < w.count && !block->failed; i++) {
        Fiber& f = *w.lanes[(first + i) % w.count];
        if (f.state != State::Ready) continue;
        run(f);
        progress = true;
    }
    return progress;
}

static void deadlock() {
    std::string text;
    int shown = 0;
    for (const Fiber& f : block->fibers)
        if (f.state != State::Done && f.state != State::Ready && shown++ < 3)
            text += std::string(shown > 1 ? "; " : "") + who(f) + " waits in " + (f.op ? f.op : "?") + " at " + place(f.site);
    message("deadlock: %s", text.c_str());
}

static void run_block() {
    std::vector<uint32_t> order(block->warps.size());
    for (uint32_t i = 0; i < order.size(); i++) order[i] = i;
    while (block->alive && !block->failed) {
        for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[block->next_random() % i]);
        bool progress = false;
        for (uint32_t index : order)
            while (!block->failed && step(block->warps[index])) {
                progress = true;
                if (block->next_random() % 64 == 0) break;
            }
        if (!progress && block->alive && !block->failed && !advance_bulk_copies()) deadlock();
    }
    if (!block->failed && !block->bulk_copies.empty()) message("the block ends before its bulk copies do");
}

static void begin_block(uint64_t number) {
    const Launch* l = block->launch;
    const Dim g = l->grid, d = l->block;
    Dim at{(uint32_t)(number % g.x), (uint32_t)(number / g.x % g.y), (uint32_t)(number / g.x / g.y)};
    uint32_t threads = d.x * d.y * d.z;
    memset(pool.shadow, 0, block->shared_used);
    block->arrays.clear();
    block->memory_barriers.clear();
    block->bulk_copies.clear();
    block->shared_used = 0;
    block->dynamic = {pool.shared, l->shared_bytes, pool.shadow, "dynamic shared memory"};
    block->shared_used = l->shared_bytes ? l->shared_bytes + 128 : 0;
    for (Barrier& b : block->barriers) b = Barrier{};
    block->fibers.resize(threads);
    block->warps.resize((threads + 31) / 32);
    for (Warp& w : block->warps) {
        w.count = w.exited = w.at_barrier = 0;
        w.meetings.clear();
    }
    block->alive = threads;
    block->random = (l->seed * 0x9e3779b97f4a7c15u + number * 0xbf58476d1ce4e5b9u) | 1;
    for (uint32_t t = 0; t < threads; t++) {
        Fiber& f = block->fibers[t];
        f.copies.clear();
        f.groups.clear();
        f.products.clear();
        f.product_groups.clear();
        f.waits_for = nullptr;
        f.thread = {{t % d.x, t / d.x % d.y, t / d.x / d.y}, at, d, g};
        f.id = t, f.state = State::Ready, f.op = nullptr, f.barrier = -1;
        f.warp = &block->warps[t / 32];
        f.warp->lanes[f.warp->count++] = &f;
        f.sp = fresh_stack(pool.stacks + (t + 1) * STACK, entry);
    }
}

extern "C" int emu_run(const Launch* launch, void (*body)(void*), void* closure) {
    Block b;
    block = &b;
    b.launch = launch, b.body = body, b.closure = closure;
    if (!pool.reserve(launch->block.x * launch->block.y * launch->block.z)) {
        message("no memory for the stacks of a block");
    }
    uint64_t blocks = (uint64_t)launch->grid.x * launch->grid.y * launch->grid.z;
    // Blocks may run in any order on a device.
    uint64_t first = blocks ? launch->seed * 0x9e3779b97f4a7c15u % blocks : 0;
    for (uint64_t i = 0; i < blocks && !b.failed; i++) {
        begin_block((first + i) % blocks);
        run_block();
    }
    memset(pool.shadow, 0, b.shared_used);
    block = nullptr;
    return b.failed;
}

}  // namespace emu
