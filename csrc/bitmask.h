// The bitmask format: one bit a weight says whether it is kept, kept values follow row by row.
//
//   one row of W      a 0 0 b 0 0 c d | 0 e ...
//   bitmask           1 0 0 1 0 0 1 1 | 0 1 ...     bit k % 8 of byte k / 8: low bit first
//   values            a b c d e ...                 no gaps, rows follow each other
//
//   packed: tiles of 4 rows, chunks of 64 columns, 64-bit words [tile][chunk][row], values in the
//   same order, then kPadding zeros, since kernels read whole vectors; offsets[tile] into values.
#pragma once
#include <cstdint>

namespace prunekern::bitmask_format {

constexpr int64_t kTileRows = 4;
constexpr int64_t kChunkColumns = 64;
constexpr int64_t kPadding = 64;

}  // namespace prunekern::bitmask_format
