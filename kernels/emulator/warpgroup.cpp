// What sm_90a adds to a block: barriers in shared memory, products of a warpgroup. Part of the runtime.
#include "runtime.h"

namespace emu {

// ---- barriers in shared memory

// Bytes that a barrier can count, and arrivals.
constexpr int64_t MAX_COUNT = (1 << 20) - 1;

MemoryBarrier* find_barrier(char* at, Site site) {
    for (MemoryBarrier& b : block->memory_barriers)
        if (b.at == at) return &b;
    emu_fail(site, "no mbarrier was initialised here");
}

void settle(MemoryBarrier* b) {
    if (b->pending || b->bytes) return;
    b->phase++;
    b->pending = b->count;
    for (Fiber& f : b->block->fibers)
        if (f.state == State::AtMemoryBarrier && f.waits_for == b) f.state = State::Ready;
}

extern "C" {

void emu_mbarrier_init(const Region* region, char* at, uint32_t count, Site site) {
    check(region, at, 8, 8, true, site);
    for (MemoryBarrier& b : block->memory_barriers)
        if (b.at == at) emu_fail(site, "an mbarrier is initialised twice");
    if (!count || count > MAX_COUNT) emu_fail(site, "an mbarrier for %u arrivals", count);
    block->memory_barriers.push_back({block, at, count, count, 0, 0, self(), site});
}

void emu_mbarrier_init_fence() {
    for (MemoryBarrier& b : block->memory_barriers)
        if (b.unfenced == self()) b.unfenced = nullptr;
}

void emu_mbarrier_arrive(const Region* region, char* at, uint32_t expected_bytes, Site site) {
    check(region, at, 8, 8, false, site);
    MemoryBarrier* b = find_barrier(at, site);
    if (!b->pending) emu_fail(site, "more arrivals at an mbarrier than its count of %u", b->count);
    b->bytes += expected_bytes;
    if (b->bytes > MAX_COUNT) emu_fail(site, "an mbarrier that expects %ld bytes", (long)b->bytes);
    b->site = site;
    b->pending--;
    settle(b);
}

void emu_mbarrier_wait(const Region* region, char* at, uint32_t parity, Site site) {
    check(region, at, 8, 8, false, site);
    MemoryBarrier* b = find_barrier(at, site);
    while ((b->phase & 1) == parity) {
        self()->waits_for = b;
        wait_in(State::AtMemoryBarrier, "mbarrier_wait", site);
    }
}

}  // extern "C"

// ---- products of a warpgroup

constexpr uint64_t SWIZZLE = 1ull << 62;

// The warps of the group that the calling thread belongs to.
static Fiber* const* group(Fiber** members, Site site) {
    uint32_t first = self()->id / 128 * 128;
    if (first + 128 > block->fibers.size()) emu_fail(site, "a warpgroup needs four whole warps");
    for (uint32_t i = 0; i < 128; i++) members[i] = &block->fibers[first + i];
    return members;
}

// One element of B: 16 bits at row n and depth k, by the layout of the descriptor.
static uint16_t element(uint64_t descriptor, uint32_t n, uint32_t k, Site site) {
    auto field = [&](int bit) { return (uint32_t)(descriptor >> bit & 0x3fff) << 4; };
    uint32_t at;
    if (descriptor & SWIZZLE) {
        at = field(0) + n / 8 * field(32) + n % 8 * 128 + k * 2;
        at ^= (at >> 7 & 7) << 4;
    } else {
        at = field(0) + n / 8 * field(32) + k / 8 * field(16) + n % 8 * 16 + k % 8 * 2;
    }
    SharedMemory memory = shared_memory();
    if (at + 2 > memory.len || !memory.shadow[at] || !memory.shadow[at + 1])
        emu_fail(site, "wgmma reads unwritten shared memory, row %u, depth %u of B", n, k);
    uint16_t bits;
    memcpy(&bits, memory.data + at, 2);
    return bits;
}

// What one warp of the group adds: its lanes' products of one instruction.
static void multiply(Fiber* const* lanes, size_t index, const float* b, uint32_t n) {
    float a[16][16];
    for (int lane = 0; lane < 32; lane++) {
        const Product& p = lanes[lane]->product_groups.front()[index];
        for (int r = 0; r < 4; r++)
            for (int h = 0; h < 2; h++)
                a[lane / 4 + r % 2 * 8][lane % 4 * 2 + r / 2 * 8 + h] = p.widen((uint16_t)(p.a[r] >> (16 * h)));
    }
    for (int lane = 0; lane < 32; lane++) {
        const Product& p = lanes[lane]->product_groups.front()[index];
        for (uint32_t i = 0; i < n / 2; i++) {
            uint32_t row = lane / 4 + i / 2 % 2 * 8, column = lane % 4 * 2 + i % 2 + i / 4 * 8;
            double sum = 0;
            for (uint32_t k = 0; k < 16; k++) sum += (double)a[row][k] * b[k * n + column];
            p.d[i] = (float)(p.d[i] + sum);
        }
    }
}

// Operands are the fibers of the group, with the same groups of products in each.
static void retire(void* const* operands, uint32_t) {
    auto* first = (Fiber*)operands[0];
    for (int i = 1; i < 128; i++)
        if (((Fiber*)operands[i])->product_groups.front().size() != first->product_groups.front().size())
            emu_fail(first->site, "the warps of a group have other products under way");
    for (size_t index = 0; index < first->product_groups.front().size(); index++) {
        const Product& p = first->product_groups.front()[index];
        for (int i = 1; i < 128; i++) {
            const Product& other = ((Fiber*)operands[i])->product_groups.front()[index];
            if (other.descriptor != p.descriptor || other.n != p.n)
                emu_fail(first->site, "a warpgroup with several descriptors for one product");
        }
        std::vector<float> b(16 * p.n);
        for (uint32_t k = 0; k < 16; k++)
            for (uint32_t n = 0; n < p.n; n++) b[k * p.n + n] = p.widen(element(p.descriptor, n, k, self()->site));
        for (int warp = 0; warp < 4; warp++) multiply((Fiber* const*)operands + warp * 32, index, b.data(), p.n);
    }
    for (int i = 0; i < 128; i++) ((Fiber*)operands[i])->product_groups.pop_front();
}

extern "C" {

uint64_t emu_wgmma_descriptor(const Region* region, const char* b, uint32_t k_step, uint32_t n_step, bool swizzle, Site site) {
    if ((uint64_t)b % 16 || k_step % 16 || n_step % 16) emu_fail(site, "a descriptor of what is not aligned to 16 bytes");
    uint64_t offset = (uint64_t)(b - shared_memory().data);
    if (offset >= shared_memory().len || b < region->start || b >= region->start + region->len)
        emu_fail(site, "a descriptor of what is not in %s", region->name);
    return offset >> 4 | (uint64_t)(k_step >> 4) << 16 | (uint64_t)(n_step >> 4) << 32 | (swizzle ? SWIZZLE : 0);
}

void emu_wgmma(float* d, uint32_t n, const uint32_t* a, uint64_t descriptor, float (*widen)(uint16_t), Site site) {
    self()->site = site;
    self()->products.push_back({d, n, {a[0], a[1], a[2], a[3]}, descriptor, widen});
}

void emu_wgmma_commit(Site site) {
    Fiber* f = self();
    f->site = site;
    f->product_groups.push_back(std::move(f->products));
    f->products.clear();
}

void emu_wgmma_wait(uint32_t groups, Site site) {
    Fiber* members[128];
    Fiber* f = self();
    while (f->product_groups.size() > groups) {
        f->site = site;
        meet_group(group(members, site), "wgmma_wait", retire, f, site);
    }
}

}  // extern "C"

}  // namespace emu
