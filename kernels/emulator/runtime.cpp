// Runs the clusters of a launch, one after the other, each thread on its own stack, in an order that a seed chooses: a warp runs
// as far as it can while others have not begun, so that what is missing between them shows. Without clusters each block is one.
#include "runtime.h"
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>

namespace emu {

extern "C" __thread Thread* emu_self = nullptr;
thread_local Cluster* cluster = nullptr;
thread_local Block* block = nullptr;

constexpr size_t STACK = 128 << 10;
constexpr size_t GUARD = 4096;
// What addresses in descriptors reach.
constexpr size_t SHARED = 256 << 10;

// Memory that outlives launches: stacks, and shared memory for each block of a cluster, of this thread of the host.
struct Pool {
    char* stacks = nullptr;
    size_t num_stacks = 0;
    char* shared = nullptr;
    uint8_t* shadow = nullptr;
    size_t num_blocks = 0;
    ~Pool() {
        if (stacks) munmap(stacks, num_stacks * STACK);
        free(shared);
        free(shadow);
    }
    bool reserve_shared(size_t blocks) {
        if (blocks <= num_blocks) return true;
        free(shared);
        free(shadow);
        shared = (char*)aligned_alloc(1024, blocks * SHARED), shadow = (uint8_t*)calloc(blocks, SHARED);
        num_blocks = shared && shadow ? blocks : 0;
        return num_blocks;
    }
    bool reserve_stacks(size_t threads) {
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
    const Launch* l = cluster->launch;
    va_list args;
    va_start(args, format);
    vsnprintf(l->message, l->message_len, format, args);
    va_end(args);
    cluster->failed = true;
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
    emu_switch(&f->sp, cluster->scheduler);
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

SharedMemory shared_memory() { return {block->shared, block->shadow, SHARED}; }

void fail_launch(Site site, const char* format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    message("%s: %s", place(site).c_str(), text);
}

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

const Region* emu_shared(const void* key, uint64_t bytes, const char* name, Site site) {
    for (SharedArray& array : block->arrays)
        if (array.key == key) return &array.region;
    uint64_t start = (cluster->shared_used + 127) / 128 * 128;
    // 128 bytes that nobody has, so that one too far is not somebody else's first.
    if (start + bytes + 128 > SHARED || cluster->shared_used + bytes > cluster->launch->shared_limit)
        emu_fail(site, "%lu bytes of shared memory for %s exceed the limit of %u", (unsigned long)bytes, name, cluster->launch->shared_limit);
    cluster->shared_used = start + bytes + 128;
    for (Block& b : cluster->blocks) b.arrays.push_back({key, {b.shared + start, bytes, b.shadow + start, name, 0, 0}});
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
    cluster->body(cluster->closure);
    Fiber* f = self();
    if (f->at_cluster) emu_fail(f->site, "a thread exits between its arrival at the cluster's barrier and the wait");
    // A block whose threads exit while others wait is divergent code that happens to work on some hardware.
    const Barrier& b = block->barriers[0];
    if (b.arrived) emu_fail(b.site, "divergent barrier: threads wait here while another exits");
    if (!f->products.empty() || !f->product_groups.empty()) emu_fail(f->site, "products of a warpgroup that nobody waited for");
    for (const Meeting& m : f->warp->meetings)
        if (m.mask >> f->id % 32 & 1) emu_fail(m.site, "divergent warp: %s waits for lane %u, which exits", m.name, f->id % 32);
    f->warp->exited |= 1u << f->id % 32;
    f->state = State::Done;
    cluster->alive--;
    if (!--block->alive) check_departure();
    settle_cluster();
    for (;;) yield();
}

static void run(Fiber& f) {
    emu_self = &f.thread;
    block = f.warp->block;
    emu_switch(&cluster->scheduler, f.sp);
}

// Every lane of a warp that can run, once, from a random one on.
static bool step(Warp& w) {
    bool progress = false;
    uint32_t first = (uint32_t)(cluster->next_random() % w.count);
    for (uint32_t i = 0; i < w.count && !cluster->failed; i++) {
        Fiber& f = *w.lanes[(first + i) % w.count];
        if (f.state != State::Ready) continue;
        run(f);
        progress = true;
    }
    return progress;
}

static void deadlock() {
    if (report_unexpected_bytes()) return;
    std::string text;
    int shown = 0;
    for (const Block& b : cluster->blocks)
        for (const Fiber& f : b.fibers)
            if (f.state != State::Done && f.state != State::Ready && shown++ < 3)
                text += std::string(shown > 1 ? "; " : "") + who(f) + " waits in " + (f.op ? f.op : "?") + " at " + place(f.site);
    message("deadlock: %s", text.c_str());
}

static void run_cluster() {
    std::vector<Warp*> order;
    for (Block& b : cluster->blocks)
        for (Warp& w : b.warps) order.push_back(&w);
    while (cluster->alive && !cluster->failed) {
        for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[cluster->next_random() % i]);
        bool progress = false;
        for (Warp* warp : order)
            while (!cluster->failed && step(*warp)) {
                progress = true;
                if (cluster->next_random() % 64 == 0) break;
            }
        // What is under way mostly arrives as late as it can, and sometimes before.
        bool early = !cluster->transfers.empty() && cluster->next_random() % 8 == 0;
        if ((early || !progress) && !cluster->failed) progress |= advance_transfers();
        if (!progress && cluster->alive && !cluster->failed) deadlock();
    }
    if (!cluster->failed) report_unexpected_bytes();
}

// Makes the threads of a block, whose stacks begin here.
static void begin_block(Block& b, Dim at, char* stacks) {
    const Launch* l = cluster->launch;
    const Dim d = l->block;
    uint32_t threads = d.x * d.y * d.z;
    b.shared = pool.shared + b.rank * SHARED, b.shadow = pool.shadow + b.rank * SHARED;
    memset(b.shadow, 0, cluster->shared_used);
    b.arrays.clear();
    b.memory_barriers.clear();
    b.dynamic = {b.shared, l->shared_bytes, b.shadow, "dynamic shared memory", 0, 0};
    for (Barrier& barrier : b.barriers) barrier = Barrier{};
    b.fibers.resize(threads);
    b.warps.resize((threads + 31) / 32);
    for (Warp& w : b.warps) {
        w.block = &b;
        w.count = w.exited = w.at_barrier = 0;
        w.meetings.clear();
    }
    b.alive = threads;
    for (uint32_t t = 0; t < threads; t++) {
        Fiber& f = b.fibers[t];
        f.copies.clear();
        f.groups.clear();
        f.products.clear();
        f.product_groups.clear();
        f.waits_for = nullptr;
        f.at_cluster = f.may_pass = false;
        f.thread = {{t % d.x, t / d.x % d.y, t / d.x / d.y}, at, d, l->grid};
        f.id = t, f.state = State::Ready, f.op = nullptr, f.barrier = -1;
        f.warp = &b.warps[t / 32];
        f.warp->lanes[f.warp->count++] = &f;
        f.sp = fresh_stack(stacks + (t + 1) * STACK, entry);
    }
}

// Number `number` of the clusters of a grid; ranks of blocks count along x first, as numbers of clusters do.
static void begin_cluster(uint64_t number) {
    const Launch* l = cluster->launch;
    const Dim g = l->grid, c = l->cluster;
    uint64_t x = g.x / c.x, y = g.y / c.y;
    Dim first{(uint32_t)(number % x) * c.x, (uint32_t)(number / x % y) * c.y, (uint32_t)(number / x / y) * c.z};
    cluster->transfers.clear();
    cluster->alive = cluster->arrived = 0;
    cluster->random = (l->seed * 0x9e3779b97f4a7c15u + number * 0xbf58476d1ce4e5b9u) | 1;
    for (Block& b : cluster->blocks) {
        uint32_t rank = b.rank;
        Dim at{first.x + rank % c.x, first.y + rank / c.x % c.y, first.z + rank / c.x / c.y};
        begin_block(b, at, pool.stacks + (uint64_t)rank * l->block.x * l->block.y * l->block.z * STACK);
        cluster->alive += b.alive;
    }
    cluster->shared_used = l->shared_bytes ? l->shared_bytes + 128 : 0;
}

extern "C" int emu_run(const Launch* launch, void (*body)(void*), void* closure) {
    Cluster c;
    cluster = &c;
    c.launch = launch, c.body = body, c.closure = closure;
    uint64_t size = (uint64_t)launch->cluster.x * launch->cluster.y * launch->cluster.z;
    uint64_t threads = size * launch->block.x * launch->block.y * launch->block.z;
    for (uint64_t rank = 0; rank < size; rank++) {
        c.blocks.emplace_back();
        c.blocks.back().cluster = &c, c.blocks.back().rank = (uint32_t)rank;
    }
    if (!pool.reserve_stacks(threads) || !pool.reserve_shared(size)) message("no memory for the blocks of a cluster");
    uint64_t clusters = (uint64_t)launch->grid.x * launch->grid.y * launch->grid.z / size;
    // They may run in any order on a device.
    uint64_t first = clusters ? launch->seed * 0x9e3779b97f4a7c15u % clusters : 0;
    for (uint64_t i = 0; i < clusters && !c.failed; i++) {
        begin_cluster((first + i) % clusters);
        run_cluster();
    }
    for (Block& b : c.blocks)
        if (b.shadow) memset(b.shadow, 0, c.shared_used);
    cluster = nullptr, block = nullptr;
    return c.failed;
}

}  // namespace emu
