// Canonical 2:4 tensors to panels (sparse24_fragments.h) and back. Either way a transpose of 4 x 4
// words within each quad of lanes is all that happens between load and store.
//
//   values   a fragment, 16 rows x 16 stored columns, is 64 pieces of a canonical row, eight values
//            or four words each. In lane 4 g + t:
//
//              t             0             1             2              3
//              canonical     row g, low    g + 8, low    row g, high    g + 8, high half of columns
//              panel         word t of these four pieces, in this order
//
//   meta     of a row tile of four panels side by side. In lane 4 g + t:
//
//              canonical     eight bytes of rows g and g + 8 in panel t, as four words: 16 bits of
//                            row g, 16 bits of row g + 8
//              panel         word t of each of the four panels, in one access with those of the
//                            other row tiles
//
// A block takes 64 rows of four panels: a warp the values of each, together 256 bytes of a row, and
// a fifth warp the metadata of all four, 32 bytes of a row. So accesses cover whole sectors.
//
// Limit: memory, twice 1.125 bytes a weight.
#include "launch.h"
#include "row_piece.cuh"
#include "sparse24_convert.h"
#include "sparse24_fragments.h"

namespace prunekern {
namespace {

using namespace sparse24_fragments;

constexpr int kWarp = 32;
constexpr int kPanels = 4;  // of a block
constexpr int kThreads = kWarp * (kPanels + 1);
constexpr int kFragments = kRowTiles * kSteps;                                 // of a panel
constexpr int kPanelMeta = kMetaBytes / 16, kPanelValues = kValuesBytes / 16;  // accesses

// Sizes of the canonical rows, and the warp's place in the grid.
struct Place {
    int64_t C, values_width, meta_width;
    int64_t first_row, column_tile, panel;  // for the fifth warp those of the first panel
    int lane, g, t;
    bool does_meta;

    __device__ Place(int64_t K)
        : C(column_tiles(K)), values_width(2 * ceil_div(K, 4)), meta_width(ceil_div(K, 8)) {
        // No more blocks than fit 32 bits, see launch(): a 64-bit division would take far longer.
        const auto blocks_of_row = static_cast<uint32_t>(ceil_div(C, kPanels));
        const int64_t row_group = blockIdx.x / blocks_of_row;
        const int warp_idx = threadIdx.x / kWarp;
        does_meta = warp_idx == kPanels;
        first_row = kRows * row_group;
        column_tile = int64_t{kPanels} * (blockIdx.x % blocks_of_row) + (does_meta ? 0 : warp_idx);
        panel = row_group * C + column_tile;
        lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
    }

    // What the lane moves of a fragment: this piece of a canonical row, eight values, and this
    // access of the panels.
    __device__ int64_t values_row(int fragment) const {
        return first_row + 16 * (fragment / kSteps) + g + 8 * (t % 2);
    }
    __device__ int64_t values_piece(int fragment) const {
        return 4 * column_tile + 2 * (fragment % kSteps) + t / 2;
    }
    __device__ int64_t values_access(int fragment) const {
        return kPanelValues * panel + kLanes * fragment + lane;
    }

    // What the lane of the fifth warp moves: a piece of eight bytes of two rows of each row tile,
    // and this access of each panel.
    __device__ int64_t meta_row(int tile) const { return first_row + 16 * tile + g; }
    __device__ int64_t meta_piece() const { return column_tile + t; }
    __device__ int64_t meta_access(int i) const { return kPanelMeta * (panel + i) + lane; }
};

// What a lane moves at once.
struct alignas(16) Words {
    uint32_t word[4];
};

// Word i of the quad's lane t becomes word t of its lane i: first within pairs of lanes, then
// between the two pairs.
__device__ Words transpose_in_quad(Words words) {
    const auto exchange = [](uint32_t& a, uint32_t& b, unsigned distance) {
        const bool gives_a = threadIdx.x & distance;
        const uint32_t got = __shfl_xor_sync(0xffffffff, gives_a ? a : b, distance);
        a = gives_a ? got : a, b = gives_a ? b : got;
    };
    exchange(words.word[0], words.word[1], 1);
    exchange(words.word[2], words.word[3], 1);
    exchange(words.word[0], words.word[2], 2);
    exchange(words.word[1], words.word[3], 2);
    return words;
}

template <bool kAligned>
__device__ uint64_t load_meta(const uint8_t* meta, int64_t row, const Place& p, int64_t N) {
    constexpr uint8_t kEmpty = 0x44;  // sparse24_format::kEmptyNibble twice
    if (row >= N || p.meta_piece() >= p.C) return kEmpty * 0x0101010101010101;
    return load_piece<kAligned, uint64_t>(meta + row * p.meta_width, p.meta_piece(), p.meta_width,
                                          kEmpty);
}

template <bool kAligned>
__device__ void store_meta(uint8_t* meta, int64_t row, const Place& p, int64_t N, uint64_t bytes) {
    if (row < N && p.meta_piece() < p.C)
        store_piece<kAligned>(meta + row * p.meta_width, p.meta_piece(), p.meta_width, bytes);
}

template <bool kAligned>
__global__ void __launch_bounds__(kThreads)
    sparse24_pack_panels_kernel(const uint16_t* __restrict__ values,
                                const uint8_t* __restrict__ meta, int64_t N, int64_t K,
                                Words* __restrict__ panel_values, Words* __restrict__ panel_meta) {
    const Place p(K);
    if (p.does_meta) {
        uint64_t rows[kRowTiles][2];
#pragma unroll
        for (int tile = 0; tile < kRowTiles; ++tile)
            for (int half = 0; half < 2; ++half)
                rows[tile][half] = load_meta<kAligned>(meta, p.meta_row(tile) + 8 * half, p, N);
        Words of_panel[kPanels];
#pragma unroll
        for (int tile = 0; tile < kRowTiles; ++tile) {
            Words row_pieces;
#pragma unroll
            for (int i = 0; i < 4; ++i)
                row_pieces.word[i] = static_cast<uint32_t>(rows[tile][0] >> 16 * i & 0xffff) |
                                     static_cast<uint32_t>(rows[tile][1] >> 16 * i & 0xffff) << 16;
            row_pieces = transpose_in_quad(row_pieces);
#pragma unroll
            for (int i = 0; i < kPanels; ++i) of_panel[i].word[tile] = row_pieces.word[i];
        }
#pragma unroll
        for (int i = 0; i < kPanels; ++i)
            if (p.column_tile + i < p.C) panel_meta[p.meta_access(i)] = of_panel[i];
    } else if (p.column_tile < p.C) {
        Words eights[kFragments] = {};  // all loads before the first shuffle waits for one
#pragma unroll
        for (int fragment = 0; fragment < kFragments; ++fragment) {
            const int64_t row = p.values_row(fragment);
            if (row < N)
                eights[fragment] = load_piece<kAligned, Words>(
                    values + row * p.values_width, p.values_piece(fragment), p.values_width);
        }
#pragma unroll
        for (int fragment = 0; fragment < kFragments; ++fragment)
            panel_values[p.values_access(fragment)] = transpose_in_quad(eights[fragment]);
    }
}

template <bool kAligned>
__global__ void __launch_bounds__(kThreads)
    sparse24_unpack_panels_kernel(const Words* __restrict__ panel_values,
                                  const Words* __restrict__ panel_meta, int64_t N, int64_t K,
                                  uint16_t* __restrict__ values, uint8_t* __restrict__ meta) {
    const Place p(K);
    if (p.does_meta) {
        Words of_panel[kPanels] = {};
#pragma unroll
        for (int i = 0; i < kPanels; ++i)
            if (p.column_tile + i < p.C) of_panel[i] = panel_meta[p.meta_access(i)];
#pragma unroll
        for (int tile = 0; tile < kRowTiles; ++tile) {
            Words row_pieces;
#pragma unroll
            for (int i = 0; i < kPanels; ++i) row_pieces.word[i] = of_panel[i].word[tile];
            row_pieces = transpose_in_quad(row_pieces);
            uint64_t rows[2] = {};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                rows[0] |= uint64_t{row_pieces.word[i] & 0xffff} << 16 * i;
                rows[1] |= uint64_t{row_pieces.word[i] >> 16} << 16 * i;
            }
            for (int half = 0; half < 2; ++half)
                store_meta<kAligned>(meta, p.meta_row(tile) + 8 * half, p, N, rows[half]);
        }
    } else if (p.column_tile < p.C) {
        Words eights[kFragments];
#pragma unroll
        for (int fragment = 0; fragment < kFragments; ++fragment)
            eights[fragment] = panel_values[p.values_access(fragment)];
#pragma unroll
        for (Words& eight : eights) eight = transpose_in_quad(eight);
#pragma unroll
        for (int fragment = 0; fragment < kFragments; ++fragment) {
            const int64_t row = p.values_row(fragment);
            if (row < N)
                store_piece<kAligned>(values + row * p.values_width, p.values_piece(fragment),
                                      p.values_width, eights[fragment]);
        }
    }
}

bool are_aligned(int64_t K, const void* values, const void* meta) {
    return K % kColumns == 0 && starts_at_multiple_of(sizeof(Words), values) &&
           starts_at_multiple_of(sizeof(uint64_t), meta);
}

int64_t blocks(int64_t N, int64_t K) { return row_groups(N) * ceil_div(column_tiles(K), kPanels); }

}  // namespace

cudaError_t sparse24_pack_panels(const void* values, const uint8_t* meta, int64_t N, int64_t K,
                                 void* panel_values, int32_t* panel_meta, cudaStream_t stream) {
    const auto kernel = are_aligned(K, values, meta) ? &sparse24_pack_panels_kernel<true>
                                                     : &sparse24_pack_panels_kernel<false>;
    return launch(kernel, {blocks(N, K), kThreads}, stream, static_cast<const uint16_t*>(values),
                  meta, N, K, static_cast<Words*>(panel_values),
                  reinterpret_cast<Words*>(panel_meta));
}

cudaError_t sparse24_unpack_panels(const void* panel_values, const int32_t* panel_meta, int64_t N,
                                   int64_t K, void* values, uint8_t* meta, cudaStream_t stream) {
    const auto kernel = are_aligned(K, values, meta) ? &sparse24_unpack_panels_kernel<true>
                                                     : &sparse24_unpack_panels_kernel<false>;
    return launch(kernel, {blocks(N, K), kThreads}, stream, static_cast<const Words*>(panel_values),
                  reinterpret_cast<const Words*>(panel_meta), N, K, static_cast<uint16_t*>(values),
                  meta);
}

}  // namespace prunekern
