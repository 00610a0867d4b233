// What the CUDA kernel for CSR reads and how its work is shared out, as pure functions: no device
// is asked. prunekern/layouts draws the tensors.
//
//   slice   kSlice columns of W, whose x a block has in shared memory
//   strip   kStripRows rows of neighbouring length
//   tile    a strip within a slice; in order slice by slice
//   unit    of work: one step of a tile, at most 32 vectors of kVector entries; or a tile's end
#pragma once
#include <algorithm>
#include <cstdint>

#include "kernels_cuda.h"
#include "stripes.h"

namespace prunekern {

namespace csr_simt {
constexpr int kSlice = 2048, kStripRows = 8, kVector = 8;
constexpr int kPair = 2 * kVector;  // entries of whole sectors, of which every row has a number
constexpr int kWarps = 16;          // of a block; a multiprocessor has one

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t slices(int64_t K) { return ceil_div(K, kSlice); }
constexpr int64_t strips(int64_t N) { return ceil_div(N, kStripRows); }
constexpr int64_t tiles(int64_t N, int64_t K) { return slices(K) * strips(N); }

// The words of crow_indices, in order.
struct Tables {
    int64_t rows, tile_starts, strip_starts, occupied;  // of these
    static constexpr Tables of(int64_t N, int64_t K) {
        return {kStripRows * strips(N), tiles(N, K) + 1, strips(N) + 1, 1};
    }
    constexpr int64_t fixed() const { return rows + tile_starts + strip_starts + occupied; }
    static constexpr int64_t kWordsAUnit = 3;
};
}  // namespace csr_simt

// Units 0 .. units - 1 shared out among warps: each of the first `warps`, which are no more than
// units, has as many as any other of them, or one more.
// Multiplications instead of divisions, by fractions of 2^32: units_a_warp rounded up, so that
// begin(warps) is `units`, and warps_a_unit rounded down.
struct Shares {
    uint32_t units, warps;
    uint64_t units_a_warp, warps_a_unit;

    static Shares of(uint32_t units, uint32_t warps) {
        warps = std::min(units, warps);
        return {units, warps, ((uint64_t{units} << 32) + warps - 1) / warps,
                (uint64_t{warps} << 32) / units};
    }
    PK_HOST_DEVICE_INLINE uint32_t begin(uint32_t warp) const {
        return static_cast<uint32_t>((warp < warps ? warp : warps) * units_a_warp >> 32);
    }
    // The warp whose share a unit is in.
    PK_HOST_DEVICE_INLINE uint32_t warp_of(uint32_t unit) const {
        auto warp = static_cast<uint32_t>(unit * warps_a_unit >> 32);  // not beyond it
        while (begin(warp + 1) <= unit) ++warp;
        return warp;
    }
};

struct CsrPlan {
    int tokens;       // of a token tile: 1, 2, 4 or 8, 16 bytes of a column of x at most
    int token_tiles;  // a launch: they run side by side and share what L2 has of W
    int blocks;       // for each
    int group;        // strips that one counter is for
    Shares shares;
    int64_t slots;  // for partial sums of kStripRows x tokens floats, for each token tile

    int64_t slot_bytes() const { return int64_t{csr_simt::kStripRows} * tokens * 4; }
};

// counters: how many the workspace has.
inline CsrPlan csr_plan(int64_t M, int64_t N, int64_t K, int64_t units, int64_t element_bytes,
                        int64_t sms, int64_t counters) {
    constexpr int64_t kMostTokenTiles = 16, kMostPartBytes = 32 << 20, kLeastUnits = 2;
    CsrPlan plan{};
    plan.tokens = 1;
    while (plan.tokens < M && plan.tokens * element_bytes < 16) plan.tokens *= 2;
    const int64_t tiles = csr_simt::tiles(N, K), strips = csr_simt::strips(N);
    const int64_t all = csr_simt::ceil_div(M, plan.tokens);
    const int64_t most = std::clamp<int64_t>(kMostPartBytes / (tiles * plan.slot_bytes()), 1,
                                             std::min(kMostTokenTiles, sms));
    const int64_t launches = csr_simt::ceil_div(all, most);
    plan.token_tiles = static_cast<int>(csr_simt::ceil_div(all, launches));
    plan.blocks = static_cast<int>(std::clamp<int64_t>(
        csr_simt::ceil_div(units, csr_simt::kWarps * kLeastUnits), 1, sms / plan.token_tiles));
    plan.group = static_cast<int>(csr_simt::ceil_div(strips, counters / plan.token_tiles));
    const int64_t warps = int64_t{plan.blocks} * csr_simt::kWarps;
    plan.shares = Shares::of(static_cast<uint32_t>(units), static_cast<uint32_t>(warps));
    plan.slots = warps + tiles;
    return plan;
}

}  // namespace prunekern
