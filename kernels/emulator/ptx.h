// The named instructions of ptx.cuh on the CPU, in the fragment layouts that the PTX ISA documents.
#pragma once
#include "cuda.h"

namespace emu {

inline float from_bf16(uint16_t bits) { return __uint_as_float((unsigned)bits << 16); }
inline uint16_t to_bf16(float v) {
    unsigned u = __float_as_uint(v);
    if (v != v) return 0x7fff;
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
inline float from_f16(uint16_t h) {
    unsigned sign = (unsigned)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ff;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000 | mantissa << 13);
    if (exponent) return __uint_as_float(sign | (exponent + 112) << 23 | mantissa << 13);
    float v = (float)mantissa * (1.0f / 16777216.0f);
    return sign ? -v : v;
}
inline uint16_t to_f16(float v) {
    unsigned u = __float_as_uint(v), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
    if (a > 0x7f800000) return 0x7fff;
    if (a >= 0x477ff000) return (uint16_t)(sign | 0x7c00);
    if (a < 0x38800000) {
        // Below the smallest normal number: adding a power of two rounds at the right bit.
        float scaled = __uint_as_float(a) + 0.5f;
        return (uint16_t)(sign | (__float_as_uint(scaled) - 0x3f000000));
    }
    return (uint16_t)(sign | ((a - 0x38000000 + 0xfff + (a >> 13 & 1)) >> 13));
}

struct LoadMatrix {
    const char* row;
    uint32_t out[4];
};

template <int COUNT, bool TRANS> void load_matrix(uint32_t* out, const Region* region, const void* at, const char* name, Site site) {
    // Only the lanes that give a row address are read through.
    bool gives_row = (int)emu_lane() < COUNT * 8;
    if (gives_row) check(region, at, 16, 16, false, site);
    LoadMatrix op{(const char*)at, {}};
    emu_warp(name, [](void* const* operands, uint32_t) {
        auto lane = [&](int i) { return (LoadMatrix*)operands[i]; };
        for (int m = 0; m < COUNT; m++)
            for (int i = 0; i < 32; i++) {
                uint16_t lo, hi;
                if (TRANS) {
                    memcpy(&lo, lane(m * 8 + i % 4 * 2)->row + i / 4 * 2, 2);
                    memcpy(&hi, lane(m * 8 + i % 4 * 2 + 1)->row + i / 4 * 2, 2);
                } else {
                    memcpy(&lo, lane(m * 8 + i / 4)->row + i % 4 * 4, 2);
                    memcpy(&hi, lane(m * 8 + i / 4)->row + i % 4 * 4 + 2, 2);
                }
                lane(i)->out[m] = lo | (uint32_t)hi << 16;
            }
    }, &op, ~0u, site);
    for (int m = 0; m < COUNT; m++) out[m] = op.out[m];
}

struct Mma {
    uint32_t a[4], b[2];
    float* d;
};

// D [16, 8] += A [16, 16] · B [16, 8]; `widen` reads one 16-bit float.
template <float (*WIDEN)(uint16_t)> void mma_16816(const char* name, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Site site) {
    Mma op{{a[0], a[1], a[2], a[3]}, {b0, b1}, d};
    emu_warp(name, [](void* const* operands, uint32_t) {
        float A[16][16], B[16][8];
        for (int lane = 0; lane < 32; lane++) {
            auto* op = (Mma*)operands[lane];
            int group = lane / 4, pair = lane % 4 * 2;
            for (int h = 0; h < 2; h++) {
                auto half = [&](uint32_t v) { return WIDEN((uint16_t)(v >> (16 * h))); };
                A[group][pair + h] = half(op->a[0]);
                A[group + 8][pair + h] = half(op->a[1]);
                A[group][pair + 8 + h] = half(op->a[2]);
                A[group + 8][pair + 8 + h] = half(op->a[3]);
                B[pair + h][group] = half(op->b[0]);
                B[pair + 8 + h][group] = half(op->b[1]);
            }
        }
        for (int lane = 0; lane < 32; lane++) {
            auto* op = (Mma*)operands[lane];
            int group = lane / 4, pair = lane % 4 * 2;
            for (int i = 0; i < 4; i++) {
                int row = group + i / 2 * 8, column = pair + i % 2;
                double sum = 0;
                for (int k = 0; k < 16; k++) sum += (double)A[row][k] * B[k][column];
                op->d[i] = (float)(op->d[i] + sum);
            }
        }
    }, &op, ~0u, site);
}

}  // namespace emu

// ---- conversions

inline unsigned short bf16_from_float(float v) { return emu::to_bf16(v); }
inline float bf16_to_float(unsigned short v) { return emu::from_bf16(v); }
inline unsigned short f16_from_float(float v) { return emu::to_f16(v); }
inline float f16_to_float(unsigned short v) { return emu::from_f16(v); }
inline unsigned pack_bf16(float lo, float hi) { return emu::to_bf16(lo) | (unsigned)emu::to_bf16(hi) << 16; }
inline unsigned pack_f16(float lo, float hi) { return emu::to_f16(lo) | (unsigned)emu::to_f16(hi) << 16; }
// f32 has more than twice the bits of bf16 and two more: rounding twice is rounding once.
inline unsigned add_bf16x2(unsigned a, unsigned b) {
    auto add = [&](int bit) { return emu::to_bf16(emu::from_bf16((uint16_t)(a >> bit)) + emu::from_bf16((uint16_t)(b >> bit))); };
    return add(0) | (unsigned)add(16) << 16;
}
inline float fast_exp2(float v) { return exp2f(v); }

// ---- asynchronous copies

template <class T, class U> void cp_async16(emu::Checked<T> dst, emu::Checked<U> src, unsigned valid = 16, EMU_SITE) {
    dst.require({file, line});
    if (valid) src.require({file, line});
    emu::emu_cp_async(dst.region, (char*)dst.at, src.region, (const char*)src.at, 16, valid, {file, line});
}
inline void cp_async_commit() { emu::emu_cp_async_commit(); }
template <int N> void cp_async_wait() { emu::emu_cp_async_wait(N); }

// ---- matrices

#define EMU_LDMATRIX(suffix, count, trans)                                                                      \
    template <class T> void ldmatrix_##suffix(unsigned (&r)[count], emu::Checked<T> row, EMU_SITE) {             \
        row.require({file, line});                                                                               \
        emu::load_matrix<count, trans>(r, row.region, row.at, "ldmatrix_" #suffix, {file, line});                \
    }
EMU_LDMATRIX(x1, 1, false)
EMU_LDMATRIX(x2, 2, false)
EMU_LDMATRIX(x4, 4, false)
EMU_LDMATRIX(x1_trans, 1, true)
EMU_LDMATRIX(x2_trans, 2, true)
EMU_LDMATRIX(x4_trans, 4, true)
#undef EMU_LDMATRIX

inline void mma_m16n8k16_bf16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, EMU_SITE) {
    emu::mma_16816<emu::from_bf16>("mma_m16n8k16_bf16", d, a, b0, b1, {file, line});
}
inline void mma_m16n8k16_f16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, EMU_SITE) {
    emu::mma_16816<emu::from_f16>("mma_m16n8k16_f16", d, a, b0, b1, {file, line});
}

// ---- barriers of some threads of a block

inline void barrier_sync(int id, int threads, EMU_SITE) { emu::emu_barrier((uint32_t)id, (uint32_t)threads, false, {file, line}); }

inline void griddepcontrol_wait() {}
inline void griddepcontrol_launch_dependents() {}
