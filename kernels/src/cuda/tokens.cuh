// Tokens as the products of many take them (tokens.cu writes them, gemm.cuh and wgmma.cuh read them): rounded once to 16 bits, to nearest even,
// and packed.
//
//   packed [T / 128][K / 8][128 tokens][8 of K]       T is filled up with zeros to a multiple of 128, K to one of 32
//
// Eight of K of eight tokens are 128 bytes in one piece. That is a matrix of ldmatrix whose rows touch every bank once, and a core matrix
// of wgmma without swizzle: 128 bytes to the next along the tokens, 2,048 along K. What 128 tokens have of a tile of 16 along K is one
// piece of 4,096 bytes, of n tiles n such pieces in a row, wherever they begin: one bulk copy each, or a part of one for every block of
// a cluster. A warp that copies 16 bytes a lane reads whole lines.
#pragma once
#include "common.cuh"

constexpr int PACKED_TOKENS = 128;

// Eights along K, filled up.
__device__ __forceinline__ int packed_columns(int k) { return (k + 31) / 32 * 4; }

// Where the eight of K of a token begin that are column `column` of `columns`, in elements.
__device__ __forceinline__ long long packed_place(int token, int column, int columns) {
    return (((long long)(token / PACKED_TOKENS) * columns + column) * PACKED_TOKENS + token % PACKED_TOKENS) * 8;
}
