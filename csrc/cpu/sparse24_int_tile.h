// The packed weight of 2:4 with int8 or int4 values, for AVX2 (R = 8), AVX-512 and AMX (R = 16).
//
//   one row tile (R rows side by side), one chunk of 8 groups of four inputs:
//
//     values   int8:  bytes [8 groups][2][R]    first kept of row 0..R-1 | second kept
//              int4:  words [2][R]              8 first kept of a row, group i in bits 4i..4i+3 |
//                                               8 second kept
//     meta     words [R]                        bits 4i..4i+3: pos0 | pos1 << 2 of group i
//     scales   [S][R] of x's dtype              one for group_size inputs, whole chunks
#pragma once
#include "scratch.h"
#include "simd.h"

namespace prunekern {
namespace {
namespace sparse24_int {

constexpr int kTileRows = kLanes;
constexpr int kChunkGroups = 8;  // one metadata word
constexpr int kChunkInputs = 4 * kChunkGroups;

// The kept numbers of a chunk, R rows: how many bytes, and those of one group as floats.
struct Int8 {
    static constexpr int64_t kChunkBytes = 2 * kChunkGroups * kTileRows;
    explicit Int8(const uint8_t* chunk) : chunk_(chunk) {}
    PK_INLINE Vec kept(int group, int j) const {
        return widen_i8(chunk_ + (2 * group + j) * kTileRows);
    }
    const uint8_t* chunk_;
};
struct Int4 {
    static constexpr int64_t kChunkBytes = 8 * kTileRows;
    explicit Int4(const uint8_t* chunk)
        : words_{load_words(chunk), load_words(chunk + 4 * kTileRows)} {}
    PK_INLINE Vec kept(int group, int j) const { return nibble_to_float(words_[j], group); }
    IVec words_[2];
};

// Asks for a chunk that is kPrefetchBytes ahead.
template <class Number>
PK_INLINE void prefetch_chunk(const uint8_t* values) {
    for (int64_t i = 0; i < Number::kChunkBytes; i += 64) prefetch(values + kPrefetchBytes + i);
}

// Where one row tile lies, and how its scales follow one another.
template <class E, class Number>
struct Tile {
    Tile(const Problem& p, const QuantizedSparse24Weight& w, int64_t tile)
        : chunks(ceil_div(p.K, kChunkInputs)),
          values(static_cast<const uint8_t*>(w.values) + tile * chunks * Number::kChunkBytes),
          meta(static_cast<const uint32_t*>(w.meta) + tile * chunks * kTileRows),
          scales(static_cast<const typename E::T*>(w.scales) + tile * w.row_scales * kTileRows),
          group_chunks(w.group_size / kChunkInputs) {}

    PK_INLINE Vec scale(int64_t chunk) const {
        return E::load_lanes(scales + chunk / group_chunks * kTileRows);
    }

    int64_t chunks;
    const uint8_t* values;
    const uint32_t* meta;
    const typename E::T* scales;
    int64_t group_chunks;
};

}  // namespace sparse24_int
}  // namespace
}  // namespace prunekern
