// What runs for which sizes, as a pure function: no device is asked.
//
//   M <= 16        decode: a block's four warps share 64 rows and take turns along K
//   M <= 32        prefill, blocks of 256 rows x 32 tokens, two a multiprocessor
//   M <= 64        prefill, blocks of 256 rows x 64 tokens, W three steps ahead: still memory-bound
//   above          prefill, blocks of 256 rows x 128 tokens; x 64, two a multiprocessor, where they
//                  would be too few: not with wgmma, whose tiles have 128
//
// Decode reads x once for 64 rows: 2 M / 64 bytes a weight beside 1.125, so that above 16 tokens it
// would read more of x (from L2) than half of W; prefill reads x once for 256 rows.
#pragma once
#include <algorithm>
#include <cstdint>

#include "kernels_cuda.h"
#include "sparse24_fragments.h"
#include "stripes.h"

namespace prunekern {

constexpr int kTileTokens = 8;  // of an mma.sp
constexpr int kDecodeWarps = 4, kDecodeBlocksPerSm = 2;
constexpr int kPrefillRowWarps = 4;  // row groups of a block

struct Sparse24Plan {
    bool decode;
    int token_tiles, token_warps;  // of a warp; of a block
    Stripes stripes;
    int64_t slot_bytes;  // of a block's partial sums

    int block_tokens() const { return token_warps * token_tiles * kTileTokens; }
};

inline Sparse24Plan prefill_plan(int64_t M, int64_t N, int64_t K, int64_t sms, int token_tiles,
                                 int token_warps) {
    using namespace sparse24_fragments;
    const int64_t tokens = token_warps * token_tiles * kTileTokens;
    const int64_t tiles = ceil_div(row_groups(N), kPrefillRowWarps) * ceil_div(M, tokens);
    const int C = static_cast<int>(column_tiles(K));
    const int blocks =
        balanced_blocks(tiles, C, sms * (3 - token_warps), token_tiles == 8 ? 16 : 8);
    const int64_t threads = int64_t{kPrefillRowWarps} * token_warps * kLanes;
    return {false,
            token_tiles,
            token_warps,
            {static_cast<int>(tiles), C, blocks},
            threads * kRowTiles * token_tiles * 16};
}

inline Sparse24Plan sparse24_plan(int64_t M, int64_t N, int64_t K, int64_t sms,
                                  bool wgmma = false) {
    using namespace sparse24_fragments;
    if (M <= 2 * kTileTokens) {
        const int R = static_cast<int>(row_groups(N)), C = static_cast<int>(column_tiles(K));
        const int tiles = M <= kTileTokens ? 1 : 2;
        const int blocks = balanced_blocks(R, C, sms * kDecodeBlocksPerSm, 2 * kDecodeWarps);
        return {true, tiles, 1, {R, C, blocks}, int64_t{tiles} * kRowTiles * kLanes * 16};
    }
    if (M <= 32) return prefill_plan(M, N, K, sms, 4, 1);
    if (M <= 64) return prefill_plan(M, N, K, sms, 4, 2);
    const Sparse24Plan wide = prefill_plan(M, N, K, sms, 8, 2);
    return wgmma || 4 * wide.stripes.blocks >= 3 * sms ? wide : prefill_plan(M, N, K, sms, 8, 1);
}

// Bytes of workspace for either variant.
inline int64_t sparse24_workspace_bytes(int64_t M, int64_t N, int64_t K, int64_t sms) {
    const auto bytes_of = [](const Sparse24Plan& plan) {
        return workspace_bytes(plan.stripes, plan.slot_bytes);
    };
    return std::max(bytes_of(sparse24_plan(M, N, K, sms)),
                    bytes_of(sparse24_plan(M, N, K, sms, true)));
}

}  // namespace prunekern
