// y[M,N] = x[M,K] W[N,K]^T on AMX: "load sparse, compute dense". Compressed weights are expanded to
// dense tiles, once for up to 512 tokens, and multiplied from there.
//
//   x         tiles [token tile][k tile][16 tokens][32 inputs]     or, rows first, its transpose
//                                                                  [16 pairs][16 tokens][2]
//   weights   tiles [row tile][k tile][16 pairs][16 rows][2]       or, rows first,
//                                                                  [16 rows][32 inputs]
//   sums      [2 x 2 tiles] of fp32 at a time: four products for four loads
//
// A format gives its tiles in the order that costs it less: kRowsFirst, and a Cursor that expands.
//
//   up to 32 tokens   a pair of row tiles at a time, 64 inputs at a time, sums in registers: weights
//                     are read as one stream, and memory binds
//   more              blocks of kBlockRowTiles row tiles x kBlockInputs inputs in L2; 32 tokens of
//                     x [32][kBlockInputs] in L1 meet all of them; sums in L2 between two blocks
//
// Limit: a product of two tiles takes 16 cycles, and a tile of weights meets M / 16 tiles of tokens.
#pragma once
#include <algorithm>

#include "amx.h"
#include "scratch.h"
#include "simd.h"

namespace prunekern {
namespace {

constexpr int64_t kStepInputs = 64;  // what a cursor expands at a time
constexpr int64_t kStepTiles = kStepInputs / kTileInputs;
constexpr int64_t kFewTokenTiles = 2;
constexpr int64_t kAmxTokens = 512;  // tokens that an expanded tile of weights meets
#ifndef BRT
#define BRT 16
#define BI 256
#endif
constexpr int64_t kBlockRowTiles = BRT;
constexpr int64_t kBlockTiles = BI / kTileInputs;  // along K

// Inputs [k, k + 32) of 16 tokens from row 0 of x on as a tile, zero beyond K and `tokens`.
template <bool kRowsFirst>
PK_INLINE void make_token_tile(const uint16_t* x, int64_t K, int64_t tokens, int64_t k,
                               uint16_t* out) {
    const int64_t valid = std::clamp<int64_t>(K - k, 0, kTileInputs);
    const __mmask32 mask = valid == kTileInputs ? 0xffffffffU : (1U << valid) - 1;
    __m512i rows[kTileSide];
    for (int i = 0; i < kTileSide; ++i)
        rows[i] = i < tokens ? _mm512_maskz_loadu_epi16(mask, x + i * K + k)
                             : _mm512_setzero_si512();
    if constexpr (kRowsFirst) transpose_words(rows);
    for (int i = 0; i < kTileSide; ++i) _mm512_store_si512(out + i * kTileInputs, rows[i]);
}

// One tile of sums to y, rows n .. of tokens m .. .
template <bool kRowsFirst>
PK_INLINE void write_tile(const Problem& p, const float* sums, int64_t n, int64_t m,
                          int64_t tokens) {
    const int64_t rows = std::min<int64_t>(kTileSide, p.N - n);
    const Vec bias =
        p.bias ? load_some<BF16>(static_cast<const uint16_t*>(p.bias) + n, rows) : zero();
    __m512i lines[kTileSide];  // one a token
    for (int i = 0; i < kTileSide; ++i) lines[i] = load_words(sums + i * kTileSide);
    if constexpr (kRowsFirst) transpose_words(lines);
    for (int64_t i = 0; i < std::min<int64_t>(kTileSide, tokens); ++i)
        store_some<BF16>(static_cast<uint16_t*>(p.y) + (m + i) * p.N + n,
                         add(as_float(lines[i]), bias), rows);
}

// Row tiles [tile_begin, tile_end) with tokens m0 .. m0 + tokens, x in tiles.
template <class Format>
void multiply_row_tiles(const Problem& p, const typename Format::Weight& w, const uint16_t* x,
                        int64_t tile_begin, int64_t tile_end, int64_t m0, int64_t tokens) {
    const int64_t k_tiles = round_up(p.K, kStepInputs) / kTileInputs;
    const int64_t token_tiles = ceil_div(tokens, kTileSide);
    const bool is_few = token_tiles <= kFewTokenTiles;
    const int64_t block_rows = is_few ? 2 : kBlockRowTiles;
    const int64_t block_k = is_few ? kStepTiles : kBlockTiles;
    const int64_t row_elems = block_k * kTileElems, token_elems = k_tiles * kTileElems;
    const int64_t token_pairs = ceil_div(token_tiles, 2);
    Scratch<uint16_t> weights(block_rows * row_elems);
    Scratch<float> all_sums(block_rows / 2 * token_pairs * 4 * kTileSums);
    const TileRegisters registers;

    for (int64_t tile = tile_begin; tile < tile_end; tile += block_rows) {
        const int64_t row_tiles = std::min(block_rows, tile_end - tile);
        typename Format::Cursor cursor(p, w, tile);
        for (int64_t k = 0; k < k_tiles; k += block_k) {
            const int64_t count = std::min(block_k, k_tiles - k);
            for (int64_t r = 0; r < row_tiles; ++r)
                for (int64_t i = 0; i < count; i += kStepTiles)
                    cursor.expand(r, (k + i) / kStepTiles,
                                  weights.get() + r * row_elems + i * kTileElems);
            const bool is_first = k == 0, is_last = k + count == k_tiles;
            for (int64_t t = 0; t < token_tiles; t += 2)
                for (int64_t r = 0; r < row_tiles; r += 2) {
                    float* sums = all_sums.get() + (r / 2 * token_pairs + t / 2) * 4 * kTileSums;
                    const auto multiply = [&](auto W, auto X) {
                        if (is_first)
                            zero_sums<W(), X()>();
                        else if (!is_few)
                            load_sums<W(), X()>(sums);
                        add_products<Format::kRowsFirst, W(), X()>(
                            weights.get() + r * row_elems, row_elems,
                            x + t * token_elems + k * kTileElems, token_elems, count);
                        if (!is_few || is_last) store_sums<W(), X()>(sums);
                        if (!is_last) return;
                        for (int i = 0; i < W(); ++i)
                            for (int j = 0; j < X(); ++j)
                                write_tile<Format::kRowsFirst>(
                                    p, sums + (2 * i + j) * kTileSums, (tile + r + i) * kTileSide,
                                    m0 + (t + j) * kTileSide, tokens - (t + j) * kTileSide);
                    };
                    with_constant<2>(static_cast<int>(std::min<int64_t>(2, row_tiles - r)),
                                     [&](auto W) {
                                         with_constant<2>(
                                             static_cast<int>(std::min<int64_t>(2, token_tiles - t)),
                                             [&](auto X) { multiply(W, X); });
                                     });
                }
        }
    }
}

template <class Format>
void linear_by_tiles(const Problem& p, const typename Format::Weight& w) {
    const int64_t k_tiles = round_up(p.K, kStepInputs) / kTileInputs;
    const int64_t row_tiles = ceil_div(p.N, kTileSide);
    Scratch<uint16_t> x(ceil_div(std::min(p.M, kAmxTokens), kTileSide) * k_tiles * kTileElems);
    for (int64_t m0 = 0; m0 < p.M; m0 += kAmxTokens) {
        const int64_t tokens = std::min(kAmxTokens, p.M - m0);
        parallel_for(p, ceil_div(tokens, kTileSide) * k_tiles, 64, [&](int64_t b, int64_t e) {
            for (int64_t i = b; i < e; ++i) {
                const int64_t t = i / k_tiles * kTileSide;
                make_token_tile<Format::kRowsFirst>(
                    static_cast<const uint16_t*>(p.x) + (m0 + t) * p.K, p.K, tokens - t,
                    i % k_tiles * kTileInputs, x.get() + i * kTileElems);
            }
        });
        parallel_for(p, ceil_div(row_tiles, 2), kWeightsPerTask / (2 * kTileSide * p.K),
                     [&](int64_t b, int64_t e) {
                         multiply_row_tiles<Format>(p, w, x.get(), 2 * b,
                                                    std::min(2 * e, row_tiles), m0, tokens);
                     });
    }
}

}  // namespace
}  // namespace prunekern
