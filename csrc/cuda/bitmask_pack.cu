// Canonical bitmask tensors to panels (bitmask_fragments.h) and back: bits first, then values.
//
//   bits     of a row in a panel, 8 canonical bytes, lane 4 g + t has two: a quarter. Spread over
//            the nibbles of a word, those of rows g and g + 8 side by side:
//
//              quarter of row g        a b c d e f ..     low bit first
//              quarter of row g + 8    A B C D E F ..
//              word                    a b A B c d C D ..
//
//   values   a lane moves the kept weights of its words one by one. Its place in a tile follows
//            from the sums over lanes that products use too (bitmask_expand.cuh), its place in the
//            canonical order from the end of its segment.
//
// A warp a panel.
//
// Limit: accesses of two bytes, a load and a store for each kept weight. Counted at half density
// for 1024 weights: 648 instructions to pack values and 669 to unpack them, and 115 and 87 for the
// bits. Sectors a weight, in bytes: 2.9 on the panel's side, where a nibble's lanes are neighbours,
// and 13 on the canonical side, where they are in 16 rows, against 1 that is needed: of loads L1
// serves the rest, of stores L2. It is done once when a weight is made: no transpose in shared
// memory pays its lines.
#include "bitmask_convert.h"
#include "bitmask_expand.cuh"
#include "launch.h"
#include "row_piece.cuh"

namespace prunekern {
namespace {

using namespace bitmask_fragments;

constexpr int kWarps = 4, kThreads = kWarps * kLanes;
constexpr unsigned kAll = 0xffffffff;

// The panel of this warp, and what lane 4 g + t has of it.
struct Place {
    int64_t C, panel, row, column_tile;
    int lane = threadIdx.x % kLanes, t = lane % 4;
    bool exists;

    __device__ Place(int64_t N, int64_t K)
        : C(column_tiles(K)), panel(int64_t{blockIdx.x} * kWarps + threadIdx.x / kLanes) {
        row = panel / C * kRows + lane / 4, column_tile = panel % C;
        exists = panel < row_groups(N) * C;
    }

    // Of a tile, g or g + 8.
    __device__ int64_t row_of(int tile, int half) const {
        return row + tile * kTileRows + half * (kTileRows / 2);
    }
    __device__ int64_t segment(int64_t n) const { return n * C + column_tile; }
    // Of a canonical row of the bitmask, in pieces of two bytes.
    __device__ int64_t quarter() const { return column_tile * 4 + t; }
};

__device__ uint32_t spread(uint32_t quarter) {
    quarter = (quarter | quarter << 8) & 0x00ff00ff;
    quarter = (quarter | quarter << 4) & 0x0f0f0f0f;
    return (quarter | quarter << 2) & 0x33333333;
}

__device__ uint32_t gather(uint32_t word) {
    word &= 0x33333333;
    word = (word | word >> 2) & 0x0f0f0f0f;
    word = (word | word >> 4) & 0x00ff00ff;
    return (word | word >> 8) & 0xffff;
}

template <int kOf>
__device__ int sum_of_lanes(int v) {
#pragma unroll
    for (int distance = 1; distance < kOf; distance *= 2) v += __shfl_xor_sync(kAll, v, distance);
    return v;
}

__device__ void store_count(int32_t* counts, const Place& p, int64_t n, int64_t N, int quarter) {
    const int count = sum_of_lanes<4>(__popc(quarter));
    if (p.t == 0 && n < N) counts[p.segment(n)] = count;
}

template <bool kAligned>
__global__ void __launch_bounds__(kThreads)
    bitmask_pack_words_kernel(const uint8_t* __restrict__ bitmask, int64_t N, int64_t K,
                              uint4* __restrict__ words, int32_t* __restrict__ units,
                              int32_t* __restrict__ counts) {
    const Place p(N, K);
    if (!p.exists) return;
    const int64_t width = ceil_div(K, 8);
    uint32_t word[kTiles];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
        word[tile] = 0;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int64_t n = p.row_of(tile, half);
            const uint32_t quarter =
                n < N ? load_piece<kAligned, uint16_t>(bitmask + n * width, p.quarter(), width) : 0;
            store_count(counts, p, n, N, quarter);
            word[tile] |= spread(quarter) << 2 * half;
        }
        const int kept = sum_of_lanes<kLanes>(__popc(word[tile]));
        if (p.lane == tile) units[1 + p.panel * kTiles + tile] = (kept + kUnit - 1) / kUnit;
    }
    words[p.panel * kLanes + p.lane] = {word[0], word[1], word[2], word[3]};
    if (p.panel == 0 && p.lane == 0) units[0] = 0;
}

template <bool kAligned>
__global__ void __launch_bounds__(kThreads)
    bitmask_unpack_words_kernel(const uint4* __restrict__ words, int64_t N, int64_t K,
                                uint8_t* __restrict__ bitmask, int32_t* __restrict__ counts) {
    const Place p(N, K);
    if (!p.exists) return;
    const int64_t width = ceil_div(K, 8);
    const uint4 four = words[p.panel * kLanes + p.lane];
    const uint32_t word[kTiles] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int64_t n = p.row_of(tile, half);
            const uint32_t quarter = gather(word[tile] >> 2 * half);
            store_count(counts, p, n, N, quarter);
            if (n < N)
                store_piece<kAligned>(bitmask + n * width, p.quarter(), width,
                                      static_cast<uint16_t>(quarter));
        }
}

// Where a lane's kept weights of a row, the quarter, begin in the canonical order.
__device__ int64_t first_of(const int64_t* ends, const Place& p, int64_t n, int64_t N,
                            uint32_t quarter) {
    int from_here = __popc(quarter);  // and in the quarters behind it
    for (int distance = 1; distance < 4; distance *= 2) {
        const int other = __shfl_down_sync(kAll, from_here, distance, 4);
        if (p.t + distance < 4) from_here += other;
    }
    return n < N ? ends[p.segment(n)] - from_here : 0;
}

// Calls move(place in the tile, place in the canonical order) for a lane's kept weights, of which
// those of either row begin at first[row] in the latter. Returns how many the tile has.
template <class Move>
__device__ int for_kept(const Tile& tile, int64_t (&first)[2], Move move) {
    const Counts totals{ptx::broadcast<0>(tile.upper.even + tile.lower.even),
                        ptx::broadcast<0>(tile.upper.odd + tile.lower.odd)};
    int start = 0;
    ptx::unrolled<kNibbles>([&](auto f) {
        constexpr int kNibble = f.value, kShift = kNibble / 2 * 8;
        const auto count_in = [](uint32_t bytes) {
            return static_cast<int>(bytes >> kShift & 255);
        };
        const uint32_t bits = tile.word >> 4 * kNibble;
        int upper = start + count_in(tile.upper.of<kNibble>());  // backwards from there
        start += count_in(totals.of<kNibble>());
        int lower = start - count_in(tile.lower.of<kNibble>());
        if (bits & 1) move(--upper, first[0]++);
        if (bits & 2) move(--upper, first[0]++);
        if (bits & 4) move(lower++, first[1]++);
        if (bits & 8) move(lower++, first[1]++);
    });
    return start;
}

template <bool kPack>
__global__ void __launch_bounds__(kThreads)
    bitmask_move_values_kernel(const uint16_t* __restrict__ from,
                               const uint32_t* __restrict__ words,
                               const int32_t* __restrict__ offsets,
                               const int64_t* __restrict__ ends, int64_t N, int64_t K,
                               uint16_t* __restrict__ to) {
    const Place p(N, K);
    if (!p.exists) return;
#pragma unroll 1
    for (int i = 0; i < kTiles; ++i) {
        Tile counted[1];
        count({words[(p.panel * kLanes + p.lane) * kTiles + i]}, counted);
        const Tile& tile = counted[0];
        const int32_t* at = offsets + p.panel * kTiles + i;
        const int64_t begin = int64_t{kUnit} * at[0], end = int64_t{kUnit} * at[1];
        int64_t first[2];
#pragma unroll
        for (int half = 0; half < 2; ++half)
            first[half] = first_of(ends, p, p.row_of(i, half), N, gather(tile.word >> 2 * half));
        const int kept = for_kept(tile, first, [&](int in_tile, int64_t canonical) {
            const int64_t in_panel = begin + in_tile;
            if constexpr (kPack)
                to[in_panel] = from[canonical];
            else
                to[canonical] = from[in_panel];
        });
        if (const int64_t padding = begin + kept + p.lane; kPack && padding < end) to[padding] = 0;
    }
}

int64_t blocks(int64_t N, int64_t K) { return ceil_div(row_groups(N) * column_tiles(K), kWarps); }

bool is_aligned(int64_t K, const uint8_t* bitmask) {
    return K % kColumns == 0 && starts_at_multiple_of(sizeof(uint16_t), bitmask);
}

template <bool kPack>
cudaError_t move_values(const void* from, const int32_t* words, const int32_t* offsets,
                        const int64_t* ends, int64_t N, int64_t K, void* to, cudaStream_t stream) {
    return launch(bitmask_move_values_kernel<kPack>, {blocks(N, K), kThreads}, stream,
                  static_cast<const uint16_t*>(from), reinterpret_cast<const uint32_t*>(words),
                  offsets, ends, N, K, static_cast<uint16_t*>(to));
}

}  // namespace

cudaError_t bitmask_pack_words(const uint8_t* bitmask, int64_t N, int64_t K, int32_t* words,
                               int32_t* units, int32_t* counts, cudaStream_t stream) {
    const auto kernel = is_aligned(K, bitmask) ? &bitmask_pack_words_kernel<true>
                                               : &bitmask_pack_words_kernel<false>;
    return launch(kernel, {blocks(N, K), kThreads}, stream, bitmask, N, K,
                  reinterpret_cast<uint4*>(words), units, counts);
}

cudaError_t bitmask_unpack_words(const int32_t* words, int64_t N, int64_t K, uint8_t* bitmask,
                                 int32_t* counts, cudaStream_t stream) {
    const auto kernel = is_aligned(K, bitmask) ? &bitmask_unpack_words_kernel<true>
                                               : &bitmask_unpack_words_kernel<false>;
    return launch(kernel, {blocks(N, K), kThreads}, stream, reinterpret_cast<const uint4*>(words),
                  N, K, bitmask, counts);
}

cudaError_t bitmask_pack_values(const void* values, const int32_t* words, const int32_t* offsets,
                                const int64_t* ends, int64_t N, int64_t K, void* panel_values,
                                cudaStream_t stream) {
    return move_values<true>(values, words, offsets, ends, N, K, panel_values, stream);
}

cudaError_t bitmask_unpack_values(const void* panel_values, const int32_t* words,
                                  const int32_t* offsets, const int64_t* ends, int64_t N, int64_t K,
                                  void* values, cudaStream_t stream) {
    return move_values<false>(panel_values, words, offsets, ends, N, K, values, stream);
}

}  // namespace prunekern
