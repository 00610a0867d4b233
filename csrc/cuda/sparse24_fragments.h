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
#pragma once
#include <cstdint>

namespace prunekern::sparse24_fragments {

constexpr int kRows = 64, kColumns = 64;  // of a panel
constexpr int kRowTiles = 4, kSteps = 2, kLanes = 32;
constexpr int kValuesBytes = 4096, kMetaBytes = 512;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t row_groups(int64_t N) { return ceil_div(N, kRows); }
constexpr int64_t column_tiles(int64_t K) { return ceil_div(K, kColumns); }

}  // namespace prunekern::sparse24_fragments
