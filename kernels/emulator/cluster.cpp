// Blocks of one cluster: their barrier, and what one sends to the shared memory of others, or memory to theirs. Part of the runtime.
//
// Bulk copies and arrivals at barriers of other blocks are under way until the scheduler, or a barrier that orders them, lets them
// arrive: mostly when nothing else can go on. What a copy writes counts as unwritten from its beginning on, in every block.
#include "runtime.h"

namespace emu {

// ---- places in other blocks

// As `region`, in another block: the same array.
static const Region* region_in(Block& other, const Region* region) {
    if (region == &block->dynamic) return &other.dynamic;
    for (size_t i = 0; i < block->arrays.size(); i++)
        if (region == &block->arrays[i].region) return &other.arrays[i].region;
    return nullptr;
}

// The block with this rank, which must not have ended.
static Block& block_of(uint32_t rank, const char* what, Site site) {
    if (rank >= cluster->blocks.size()) emu_fail(site, "%s of block %u of a cluster, which has %lu", what, rank, (unsigned long)cluster->blocks.size());
    Block& b = cluster->blocks[rank];
    if (!b.alive) emu_fail(site, "%s of block %u of the cluster, which has ended", what, rank);
    return b;
}

// The barrier of another block that is at this place in this one; others may use it only once its initialisation was made known to them.
static MemoryBarrier* barrier_in(Block& other, char* at, Site site) {
    char* there = other.shared + (at - block->shared);
    for (MemoryBarrier& b : other.memory_barriers) {
        if (b.at != there) continue;
        if (b.unfenced && &other != block) emu_fail(site, "an mbarrier of block %u of the cluster that no fence made known to others", other.rank);
        return &b;
    }
    emu_fail(site, "no mbarrier was initialised here in block %u of the cluster", other.rank);
}

// ---- transfers

static void perform(const Transfer& t) {
    MemoryBarrier* b = t.barrier;
    const Copy& c = t.copy;
    if (c.bytes) {
        memcpy(c.dst, c.src, c.bytes);
        memset(c.to->shadow + (c.dst - c.to->start), 1, c.bytes);
        b->bytes -= c.bytes;
        b->site = t.site;
    } else if (!b->pending) {
        return fail_launch(t.site, "more arrivals at an mbarrier of block %u of the cluster than its count of %u", t.target->rank, b->count);
    } else {
        b->pending--;
    }
    settle(b);
}

bool advance_transfers() {
    if (cluster->transfers.empty()) return false;
    size_t index = cluster->next_random() % cluster->transfers.size();
    Transfer t = cluster->transfers[index];
    cluster->transfers.erase(cluster->transfers.begin() + (long)index);
    perform(t);
    return true;
}

void check_departure() {
    for (const Transfer& t : cluster->transfers)
        if (t.target == block)
            emu_fail(t.site, "block %u of the cluster ends before %s reaches it", block->rank, t.copy.bytes ? "this copy" : "this arrival");
}

bool report_unexpected_bytes() {
    for (const Block& other : cluster->blocks)
        for (const MemoryBarrier& b : other.memory_barriers)
            if (b.bytes < 0) {
                fail_launch(b.site, "%ld bytes more than expected have come to an mbarrier of block %u of the cluster", (long)-b.bytes, other.rank);
                return true;
            }
    return false;
}

// ---- the barrier of the cluster

void settle_cluster() {
    if (!cluster->arrived || cluster->arrived < cluster->alive) return;
    cluster->arrived = 0;
    // Threads arrive with what they did before: arrivals at other barriers are over. Copies are not, nobody orders them.
    for (size_t i = 0; i < cluster->transfers.size() && !cluster->failed;) {
        Transfer t = cluster->transfers[i];
        if (t.copy.bytes) {
            i++;
            continue;
        }
        cluster->transfers.erase(cluster->transfers.begin() + (long)i);
        perform(t);
    }
    for (Block& b : cluster->blocks)
        for (Fiber& f : b.fibers) {
            if (!f.at_cluster) continue;
            f.may_pass = true;
            if (f.state == State::AtClusterBarrier) f.state = State::Ready;
        }
}

extern "C" {

uint32_t emu_cluster_rank() { return block->rank; }
uint32_t emu_cluster_size() { return (uint32_t)cluster->blocks.size(); }

void emu_cluster_arrive(Site site) {
    Fiber* f = self();
    if (f->at_cluster) emu_fail(site, "a thread arrives at the cluster's barrier again before it waits");
    f->at_cluster = true, f->may_pass = false;
    f->site = site;
    cluster->arrived++;
    settle_cluster();
}

void emu_cluster_wait(Site site) {
    Fiber* f = self();
    if (!f->at_cluster) emu_fail(site, "a thread waits at the cluster's barrier without having arrived");
    if (!f->may_pass) wait_in(State::AtClusterBarrier, "cluster_wait", site);
    f->at_cluster = f->may_pass = false;
}

void emu_mbarrier_arrive_at(const Region* region, char* bar, uint32_t rank, Site site) {
    check(region, bar, 8, 8, false, site);
    Block& other = block_of(rank, "an arrival at an mbarrier", site);
    cluster->transfers.push_back({&other, {}, barrier_in(other, bar, site), site});
}

void emu_bulk_copy(const Region* to, char* dst, const Region* from, const char* src, uint32_t bytes, char* bar, uint32_t mask, Site site) {
    if (!bytes || bytes % 16) emu_fail(site, "a bulk copy of %u bytes, which is no multiple of 16", bytes);
    if (!mask || mask >> 16) emu_fail(site, "a bulk copy to the blocks of the mask %x, which has 16 bits", mask);
    check(from, src, bytes, 16, false, site);
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        Block& other = block_of((uint32_t)__builtin_ctz(rest), "a bulk copy to shared memory", site);
        const Region* region = region_in(other, to);
        if (!region) emu_fail(site, "a bulk copy to %s, which is not shared memory", to->name);
        char* there = other.shared + (dst - block->shared);
        check(region, there, bytes, 16, true, site);
        // Nobody may read it until it has come.
        unwritten(region, there, bytes);
        cluster->transfers.push_back({&other, {region, there, src, bytes, bytes}, barrier_in(other, bar, site), site});
    }
}

}  // extern "C"

}  // namespace emu
