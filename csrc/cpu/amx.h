// AMX: matrices of 16 rows x 64 bytes in eight registers, and their product. Intel SDM volume 2,
// TDPBF16PS; volume 1, chapter 18.
//
//   c[16 rows][16 columns] += a[16 rows][32 inputs] . b[16 pairs of inputs][16 columns][2]
//   fp32                      bf16                    bf16
//
// The even and the odd inputs of a tile are summed apart and then added; a denormal input or sum
// counts as zero, which costs less than 2^-126 a product.
//
// Registers: 0..3 sums [2 row tiles][2 token tiles], 4 and 5 weights, 6 and 7 tokens.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "simd.h"

namespace prunekern {
namespace {

constexpr int kTileSide = 16;  // rows, and 32-bit columns
constexpr int kTileInputs = 32;
constexpr int kTileElems = kTileSide * kTileInputs;
constexpr int kPairElems = 2 * kTileElems;
constexpr int kTileRowBytes = 64;
constexpr int kBlockSums = 4 * kTileSide * kTileSide;  // of registers 0..3

// Where the sums of row tile w and token tile x lie in memory, of a block of 2 x 2.
constexpr int64_t sums_offset(int64_t w, int64_t x) { return (2 * w + x) * kTileSide * kTileSide; }

// All eight registers in their full size for as long as it lives, on this thread; then free, as the
// system saves 8 KB at each switch of a thread whose tiles are in use.
class TileRegisters {
  public:
    TileRegisters() {
        alignas(64) struct {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {};
            uint8_t rows[16] = {};
        } config;
        for (int i = 0; i < 8; ++i) {
            config.row_bytes[i] = kTileRowBytes;
            config.rows[i] = kTileSide;
        }
        static_assert(sizeof(config) == 64);
        asm volatile("" ::"r"(&config) : "memory");  // as below: the intrinsic names 8 bytes
        _tile_loadconfig(&config);
    }
    ~TileRegisters() { _tile_release(); }
    TileRegisters(const TileRegisters&) = delete;
    TileRegisters& operator=(const TileRegisters&) = delete;
};

// GCC's intrinsics do not say that they read memory: what was stored for them must be there.
#define PK_TILE_LOAD(tile, address)                \
    do {                                           \
        asm volatile("" ::: "memory");             \
        _tile_loadd(tile, address, kTileRowBytes); \
    } while (false)

// W row tiles x X token tiles of sums, as sums_offset counts them.
template <int W, int X>
PK_INLINE void zero_sums() {
    _tile_zero(0);
    if constexpr (X == 2) _tile_zero(1);
    if constexpr (W == 2) _tile_zero(2);
    if constexpr (W == 2 && X == 2) _tile_zero(3);
}
template <int W, int X>
PK_INLINE void load_sums(const float* sums) {
    PK_TILE_LOAD(0, sums);
    if constexpr (X == 2) PK_TILE_LOAD(1, sums + sums_offset(0, 1));
    if constexpr (W == 2) PK_TILE_LOAD(2, sums + sums_offset(1, 0));
    if constexpr (W == 2 && X == 2) PK_TILE_LOAD(3, sums + sums_offset(1, 1));
}
template <int W, int X>
PK_INLINE void store_sums(float* sums) {
    _tile_stored(0, sums, kTileRowBytes);
    if constexpr (X == 2) _tile_stored(1, sums + sums_offset(0, 1), kTileRowBytes);
    if constexpr (W == 2) _tile_stored(2, sums + sums_offset(1, 0), kTileRowBytes);
    if constexpr (W == 2 && X == 2) _tile_stored(3, sums + sums_offset(1, 1), kTileRowBytes);
}

// kRowsFirst: weights are the operand a, and sums [row][token]; else x is, and sums [token][row].
#define PK_TILE_PRODUCT(sums, weights, tokens)     \
    do {                                           \
        if constexpr (kRowsFirst)                  \
            _tile_dpbf16ps(sums, weights, tokens); \
        else                                       \
            _tile_dpbf16ps(sums, tokens, weights); \
    } while (false)

// sums += the product over `count` tiles along K, of operands [k tile][2 row or token tiles].
template <bool kRowsFirst, int W, int X>
PK_INLINE void add_products(const uint16_t* w, const uint16_t* x, int64_t count) {
    for (int64_t i = 0; i < count; ++i, w += kPairElems, x += kPairElems) {
        PK_TILE_LOAD(4, w);
        PK_TILE_LOAD(6, x);
        PK_TILE_PRODUCT(0, 4, 6);
        if constexpr (X == 2) {
            PK_TILE_LOAD(7, x + kTileElems);
            PK_TILE_PRODUCT(1, 4, 7);
        }
        if constexpr (W == 2) {
            PK_TILE_LOAD(5, w + kTileElems);
            PK_TILE_PRODUCT(2, 5, 6);
        }
        if constexpr (W == 2 && X == 2) PK_TILE_PRODUCT(3, 5, 7);
    }
}

// Word j of line i to word i of line j of a tile: within 64 bits, 128 bits, then across.
PK_INLINE void transpose_tile(void* tile) {
    auto* lines = static_cast<uint32_t*>(tile);
    __m512i rows[kTileSide], t[kTileSide];
    for (int i = 0; i < kTileSide; ++i) rows[i] = load_words(lines + i * kTileSide);
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    // rows[4 q + c]: column c of each 128 bits of rows 4 q .. 4 q + 3
#pragma GCC unroll 4
    for (int q = 0; q < 16; q += 4) {
        rows[q] = _mm512_unpacklo_epi64(t[q], t[q + 2]);
        rows[q + 1] = _mm512_unpackhi_epi64(t[q], t[q + 2]);
        rows[q + 2] = _mm512_unpacklo_epi64(t[q + 1], t[q + 3]);
        rows[q + 3] = _mm512_unpackhi_epi64(t[q + 1], t[q + 3]);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
        const __m512i low01 = _mm512_shuffle_i32x4(rows[c], rows[4 + c], 0x44);
        const __m512i high01 = _mm512_shuffle_i32x4(rows[c], rows[4 + c], 0xee);
        const __m512i low23 = _mm512_shuffle_i32x4(rows[8 + c], rows[12 + c], 0x44);
        const __m512i high23 = _mm512_shuffle_i32x4(rows[8 + c], rows[12 + c], 0xee);
        t[c] = _mm512_shuffle_i32x4(low01, low23, 0x88);
        t[4 + c] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
        t[8 + c] = _mm512_shuffle_i32x4(high01, high23, 0x88);
        t[12 + c] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
    }
    for (int i = 0; i < kTileSide; ++i) store_words(lines + i * kTileSide, t[i]);
}

}  // namespace
}  // namespace prunekern
