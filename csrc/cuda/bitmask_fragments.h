// The packed bitmask weight that the sm80 kernels read, one copy for every number of tokens.
//
// W [N, K] is cut into panels of 64 x 64, a panel into four tiles of 16 rows, and a tile into
// eight nibbles for each lane l = 4 g + t of a warp. Lane 4 g + t has the columns 16 t .. 16 t + 15
// of rows g and g + 8; nibble f has two columns of both:
//
//     columns          16 t + 2 f, + 1
//     row g        |  p 0       p 1  |         bits of nibble f, low first: p 0, p 1, p 2, p 3
//     row g + 8    |  p 2       p 3  |
//
//   bitmask [R][C][32 lanes][4 tiles]   32-bit words, nibble f in bits 4 f .. 4 f + 3: one 16-byte
//                                       load of a lane has its words of all four tiles
//   values  tile by tile, [R][C][4 tiles]; in a tile the kept ones nibble by nibble: first all
//           lanes' rows g backwards, p 1 of lane 31 to p 0 of lane 0, then their rows g + 8
//           forwards (bitmask_expand.cuh says why); then zeros up to a multiple of kUnit = 8
//           values, 16 bytes
//   offsets [4 R C + 1]                 32-bit, where each tile starts, in units
//
// R = ceil(N / 64), C = ceil(K / 64). Nibbles 2 s and 2 s + 1 are the four registers of an A
// fragment of mma.m16n8k16, steps s = 0 .. 3 of a tile, with the columns of a panel in an order of
// their own: that of 32 neighbouring bytes of x a lane, which thus are B's four fragments as they
// lie. Bits a weight at half density: 8 of values, 1 of bitmask, 0.055 of padding, 0.031 of
// offsets. What a nibble of all lanes reads are neighbouring values: in shared memory without
// conflicts. A tile may be full: 2048 bytes.
#pragma once
#include <cstdint>

namespace prunekern::bitmask_fragments {

constexpr int kRows = 64, kColumns = 64;  // of a panel
constexpr int kTileRows = 16, kTiles = kRows / kTileRows, kSteps = 4, kLanes = 32, kNibbles = 8;
constexpr int kUnit = 8, kUnitBytes = 2 * kUnit;
constexpr int kTileBytes = kTileRows * kColumns * 2;  // a full tile's values
constexpr int kBitmaskBytes = kRows * kColumns / 8;   // of a panel
constexpr int kLaneWordBytes = kBitmaskBytes / kLanes;
constexpr int kLaneColumns = 16;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t row_groups(int64_t N) { return ceil_div(N, kRows); }
constexpr int64_t column_tiles(int64_t K) { return ceil_div(K, kColumns); }

}  // namespace prunekern::bitmask_fragments
