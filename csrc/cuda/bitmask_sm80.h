// What runs for which sizes, as a pure function: no device is asked.
//
//   M <= 16        decode: a block's four warps share 64 rows and take turns along K
//   M <= 32        prefill, blocks of 128 rows x 32 tokens, two a multiprocessor
//   M <= 64        the same x 64 tokens: still bound by the bytes of W
//   above          the same x 128 tokens
//   far above      W is made dense and torch multiplies: bitmask_dense_tokens
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

// The least tokens from which a dense product of W made dense is as fast as this one, INT64_MAX
// where none is. Modelled at half density, in clocks of a multiprocessor for 1024 weights and M
// tokens, which are M / 2 mma: prefill takes 2.22 each on the data path (bitmask_prefill_sm80.cu),
// a dense product those of the tensor core by the architecture's best instruction. To make W dense
// moves 4 bytes a weight: 1.14 read and 2 written, then 2 read instead of 1.14.
//
//                              prefill    dense    made dense    equal at tokens
//     8.0    A100              1.11 M     1 M      306           2780
//     9.0    H100, H200        1.11 M     M / 2    282, 206      462, 338
//     10.x   B200              1.11 M     M / 4    141           164
//     8.6, 8.9, 12.0           tensor cores take 4 to 8 clocks a mma and bind both: never
//
// (B200: 148 multiprocessors at 1.85 GHz, 8 TB/s.) At 400 tokens neither Hopper loses a tenth by
// the other's choice. One launch more takes as long as making another 2^20 weights dense, 1 to 2
// us. Density is left out: from 10 to 90 % kept, wavefronts were counted to rise by 0.2 a mma,
// which moves the A100's point from 5100 to 1900 tokens, where the choice is worth 5 %, and the
// others by less than a tenth.
inline int64_t bitmask_dense_tokens(int64_t N, int64_t K, int capability) {
    const int64_t tokens = capability == 80        ? 2780
                           : capability / 10 == 9  ? 400
                           : capability / 10 == 10 ? 164
                                                   : INT64_MAX;
    if (tokens == INT64_MAX) return tokens;
    return tokens + bitmask_fragments::ceil_div(tokens << 20, N * K);
}

template <class Element>
cudaError_t bitmask_decode_sm80(const CudaProblem&, const BitmaskPanels&, const BitmaskPlan&);
template <class Element>
cudaError_t bitmask_prefill_sm80(const CudaProblem&, const BitmaskPanels&, const BitmaskPlan&);

}  // namespace prunekern
