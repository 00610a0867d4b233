// Work cut into equal stripes, whatever the shape (stream-K): R row groups of C column tiles each
// are R C panels, of which block b of G takes those from b R C / G on.
//
//   row groups  |-------- 0 --------|-------- 1 --------|-------- 2 --------|     C panels each
//   blocks      |--- 0 ---|--- 1 ---|--- 2 ---|--- 3 ---|--- 4 ---|--- 5 ---|     G = 2 R: split-K
//   blocks      |----- 0 -----|----- 1 -----|----- 2 -----|----- 3 -----|---      any other G
//
// A block's stripe is cut where a row group ends, into segments. A row group that several blocks
// share is summed from the partial sums that each leaves in the workspace, in the order of blocks,
// by whichever comes last (combine.cuh): so results do not depend on who that is.
// Source: Osama et al., "Stream-K: Work-centric Parallel Decomposition for Dense Matrix-Matrix
// Multiplication on the GPU", PPoPP 2023.
#pragma once
#include <algorithm>
#include <cstdint>

#if defined(__CUDACC__)
#define PK_HOST_DEVICE_INLINE __host__ __device__ __forceinline__
#else
#define PK_HOST_DEVICE_INLINE inline
#endif

namespace prunekern {

// panels() x blocks is below 2^31 unless each block has one row group.
struct Stripes {
    int row_groups, column_tiles, blocks;

    PK_HOST_DEVICE_INLINE int panels() const { return row_groups * column_tiles; }
    PK_HOST_DEVICE_INLINE int begin(int block) const {
        return blocks == row_groups ? block * column_tiles : block * panels() / blocks;
    }
    PK_HOST_DEVICE_INLINE int block_of(int panel) const {
        return blocks == row_groups ? panel / column_tiles : ((panel + 1) * blocks - 1) / panels();
    }
    // A block's stripe, segment by segment: call(row group, first column tile, how many).
    template <class F>
    PK_HOST_DEVICE_INLINE void for_segments(int block, F call) const {
        const int end = begin(block + 1);
        for (int at = begin(block); at < end;) {
            const int row_group = at / column_tiles, column = at - row_group * column_tiles;
            const int left = column_tiles - column, length = left < end - at ? left : end - at;
            call(row_group, column, length);
            at += length;
        }
    }
    // The blocks that share a row group.
    PK_HOST_DEVICE_INLINE int first_block(int row_group) const {
        return block_of(row_group * column_tiles);
    }
    PK_HOST_DEVICE_INLINE int last_block(int row_group) const {
        return block_of(row_group * column_tiles + column_tiles - 1);
    }
    // A block shares at most two row groups with others: the one that it begins in and the one that
    // it ends in. Where its part of this one lies in the workspace: only the first block that
    // shares a row group can have begun before it.
    PK_HOST_DEVICE_INLINE int slot(int block, int row_group) const {
        return 2 * block + (begin(block) < row_group * column_tiles);
    }
};

// Blocks for so many row groups (or tiles of y) of so many column tiles where `slots` run at once:
// whole splits of each where they fill seven eighths of the slots, so that no block has parts of
// two, else equal stripes; none with fewer than `least` column tiles, so that partial sums stay
// cheap.
inline int balanced_blocks(int64_t row_groups, int64_t column_tiles, int64_t slots, int64_t least) {
    const int64_t panels = row_groups * column_tiles;
    const int64_t most = std::max<int64_t>(1, column_tiles / least);
    const int64_t whole = row_groups * std::clamp<int64_t>(slots / row_groups, 1, most);
    const int64_t stripes = std::min(slots, panels / least);
    const int64_t rounds = (whole + slots - 1) / slots;
    const bool full = 8 * whole >= 7 * rounds * slots;
    const int64_t blocks = full || stripes < std::min(whole, slots) ? whole : stripes;
    return static_cast<int>(panels > INT32_MAX / blocks ? row_groups : blocks);
}

// Where blocks meet (combine.cuh): counters, then two slots of partial sums a block.
constexpr int kCounters = 4096;  // one a block: the tile that begins in it and that it shares

constexpr int64_t workspace_bytes(int64_t blocks, int64_t slot_bytes) {
    return kCounters * int64_t{sizeof(int)} + 2 * blocks * slot_bytes;
}
// Where blocks have whole tiles of y there is nothing to combine.
inline int64_t workspace_bytes(const Stripes& stripes, int64_t slot_bytes) {
    return workspace_bytes(stripes.blocks != stripes.row_groups ? stripes.blocks : 0, slot_bytes);
}

}  // namespace prunekern
