// The packed 2:4 weight that the sm80 and sm90a kernels read, one copy for every number of tokens.
//
// W [N, K] is cut into panels of 64 x 64; a panel is eight mma.sp.m16n8k32 A fragments, lying in
// the order in which the lanes of a warp hold them (PTX ISA, "Matrix fragments for
// mma.sp.m16n8k32"):
//
//   values [R][C][4 row tiles][2 steps][32 lanes][8]   R = ceil(N / 64), C = ceil(K / 64)
//          lane l = 4 g + t of step s: stored columns 16 s + 2 t + {0, 1} of rows g and g + 8, then
//          the same 8 columns on: the four registers of the fragment, one 16-byte load
//   meta   [R][C][32 lanes][4 row tiles]               32-bit words
//          lane 4 g + 2 s + h holds groups 4 h .. 4 h + 3 of step s: row g in bits 0-15, row g + 8
//          in bits 16-31, a nibble a group; so with selector s one word serves both steps of a tile
//          and one 16-byte load all eight mma.sp of the panel
//
// A panel is 4096 + 512 bytes, 1.125 bytes a weight, contiguous: a warp reads it with nine 16-byte
// loads a lane at constant offsets from two addresses. Rows and groups beyond N and K hold zeros
// with positions 0 and 1. The four row tiles are the four warps' A fragments of wgmma.sp.m64nNk32.
//
// Values of 8 and 4 bits are whole numbers q, stored as q + 128 and q + 8, and W = q * scale. They
// lie step by step, so that a 16-byte load has a lane's values of two or all four row tiles:
//
//   values [R][C][2 steps][2 loads][32 lanes][2 row tiles][2 words]   8 bits
//          word h: columns 8 h + 2 t + {0, 1} of the step; bytes: the first of them of rows g and
//          g + 8, then the second of both
//   values [R][C][2 steps][32 lanes][4 row tiles]                     4 bits, one word
//          nibbles 0-3: column 2 t of rows g and g + 8, column 2 t + 8 of both; 4-7: the next
//          columns
//   scales [R][S][8 g][4 row tiles][2]   16-bit elements: a lane loads those of its eight rows, g
//          and g + 8 of each tile, at once. S = 1 is one for all of a row, else one serves 2^shift
//          steps and S = ceil(2 C / 2^shift)
//
// That is 0.625 and 0.375 bytes a weight, and 2 / 32 for scales of 32 inputs, 2 / 64 of 64, ...
#pragma once
#include <cstdint>

namespace prunekern::sparse24_fragments {

constexpr int kRows = 64, kColumns = 64;  // of a panel
constexpr int kRowTiles = 4, kSteps = 2, kLanes = 32;
constexpr int kMetaBytes = 512;
constexpr int kLoadBytes = kLanes * 16, kScalesBytes = kRows * 2;

constexpr int values_bytes(int bits) { return kRows * kColumns / 2 * bits / 8; }  // of a panel
constexpr int kValuesBytes = values_bytes(16);

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t row_groups(int64_t N) { return ceil_div(N, kRows); }
constexpr int64_t column_tiles(int64_t K) { return ceil_div(K, kColumns); }

// The shift of `count` scales a row.
constexpr int kWholeRow = 31;
constexpr int scale_shift(int64_t column_tiles, int64_t count) {
    int shift = 0;
    while (shift < kWholeRow && ceil_div(column_tiles * kSteps, int64_t{1} << shift) > count)
        ++shift;
    return count == 1 ? kWholeRow : shift;
}

}  // namespace prunekern::sparse24_fragments
