// What runs for which sizes, as a pure function: no device is asked.
//
//   M <= 16        decode: a block's four warps share 64 rows and take turns along K
//   M <= 32        prefill, blocks of 128 rows x 32 tokens, two a multiprocessor
//   M <= 64        the same x 64 tokens: still bound by the bytes of W
//   above          the same x 128 tokens
//
// Decode reads x once for 64 rows: 2 M / 64 bytes a weight beside 1.135 at half density, so that
// above 16 tokens it would read more of x (from L2) than half of W; prefill reads x once for 128.
#pragma once
#include <algorithm>
#include <cstdint>

#include "bitmask_fragments.h"
#include "kernels_cuda.h"
#include "stripes.h"

namespace prunekern {

constexpr int kBitmaskTileTokens = 8;  // of a mma
constexpr int kBitmaskDecodeWarps = 4, kBitmaskDecodeBlocksPerSm = 2;
constexpr int kPrefillWarps = 4, kPrefillRows = 128, kPrefillBlocksPerSm = 2;  // of a block

struct BitmaskPlan {
    bool decode;
    int token_tiles;  // of a warp
    Stripes stripes;
    int64_t slot_bytes;  // of a block's partial sums

    int block_tokens() const { return token_tiles * kBitmaskTileTokens; }
};

inline BitmaskPlan bitmask_plan(int64_t M, int64_t N, int64_t K, int64_t sms) {
    using namespace bitmask_fragments;
    const int C = static_cast<int>(column_tiles(K));
    if (M <= 2 * kBitmaskTileTokens) {
        const int R = static_cast<int>(row_groups(N)), tiles = M <= kBitmaskTileTokens ? 1 : 2;
        const int blocks =
            balanced_blocks(R, C, sms * kBitmaskDecodeBlocksPerSm, 2 * kBitmaskDecodeWarps);
        return {true, tiles, {R, C, blocks}, int64_t{tiles} * kTiles * kLanes * 16};
    }
    const int token_tiles = M <= 32 ? 4 : M <= 64 ? 8 : 16;
    const int64_t tiles = ceil_div(N, kPrefillRows) * ceil_div(M, token_tiles * kBitmaskTileTokens);
    const int blocks = balanced_blocks(tiles, C, sms * kPrefillBlocksPerSm, 8);
    return {false,
            token_tiles,
            {static_cast<int>(tiles), C, blocks},
            int64_t{kPrefillRows} * token_tiles * kBitmaskTileTokens * 4};
}

template <class Element>
cudaError_t bitmask_decode_sm80(const CudaProblem&, const BitmaskPanels&, const BitmaskPlan&);
template <class Element>
cudaError_t bitmask_prefill_sm80(const CudaProblem&, const BitmaskPanels&, const BitmaskPlan&);

}  // namespace prunekern
