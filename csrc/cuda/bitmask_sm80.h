// What runs for which sizes, as a pure function: no device is asked.
//
//   M <= 16        decode: a block's four warps share 64 rows and take turns along K
#pragma once
#include <algorithm>
#include <cstdint>

#include "bitmask_fragments.h"
#include "kernels_cuda.h"
#include "sparse24_sm80.h"
#include "stripes.h"

namespace prunekern {

struct BitmaskPlan {
    bool decode;
    int token_tiles;  // of a warp
    Stripes stripes;
    int64_t slot_bytes;  // of a block's partial sums

    int block_tokens() const { return token_tiles * kTileTokens; }
};

inline BitmaskPlan bitmask_plan(int64_t M, int64_t N, int64_t K, int64_t sms) {
    using namespace bitmask_fragments;
    const int R = static_cast<int>(row_groups(N)), C = static_cast<int>(column_tiles(K));
    const int tiles = M <= kTileTokens ? 1 : 2;
    const int blocks = balanced_blocks(R, C, sms * kDecodeBlocksPerSm, 2 * kDecodeWarps);
    return {true, tiles, {R, C, blocks}, int64_t{tiles} * kTiles * kLanes * 16};
}

template <class Element>
cudaError_t bitmask_decode_sm80(const CudaProblem&, const BitmaskPanels&, const BitmaskPlan&);

}  // namespace prunekern
