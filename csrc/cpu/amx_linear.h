// y[M,N] = x[M,K] W[N,K]^T on AMX: "load sparse, compute dense". Compressed weights are expanded to
// dense tiles, and these are multiplied with as many tokens as L2 has room for.
//
//   x         slices along K of up to 1 MB, each [token pair][k tile][2 token tiles] of
//             [16 tokens][32 inputs], or, rows first, its transpose [16 pairs][16 tokens][2]
//   weights   a slice of two row tiles, [k tile][2 row tiles] of
//             [16 pairs][16 rows][2], or, rows first, [16 rows][32 inputs]
//   sums      2 row tiles x 2 token tiles of fp32 in registers: four products for four loads;
//             in memory only between two slices
//
//   for each slice of x, pair of row tiles, 32 tokens:
//     first tokens    expand 64 inputs; expand the next 64, multiply; ...
//     all others      multiply with what has been expanded
//
// A format gives its tiles in the order that costs it less: kRowsFirst, and a Cursor that expands.
//
// Limit, measured on one core of a Xeon with 2 MB of L2: a product of tiles 4.7 ns, loading one 2.5
// ns from L1 and 5.8 ns from L2, storing one 5 and 17 ns. Up to 32 tokens memory binds: the first
// tokens' products hide behind it. Beyond, weights and x both come from L2, 6.4 ns a product at
// best. Of 7.1 ms for 512 tokens, 2048 x 4096, 2:4, the products take 3.6, expansion 1.8, sums 0.8,
// y 0.5, x 0.3. Slices short enough to keep x in L1 need their sums moved eight times as often, and
// are no faster.
#pragma once
#include <algorithm>

#include "amx.h"
#include "scratch.h"
#include "simd.h"

namespace prunekern {
namespace {

constexpr int64_t kStepInputs = 64;  // what a cursor expands at a time
constexpr int64_t kStepTiles = kStepInputs / kTileInputs;
constexpr int64_t kSliceTiles = 1024;  // of x, 1 KB each: half of L2. Measured: 512 is worse
constexpr int64_t kTokenChunk = 256;   // tokens for which a weight is expanded once, measured
constexpr int64_t kRowTiles = 64;      // whose sums wait between two slices: 1 MB at most

// How x [tokens, K] is cut into tiles and slices.
struct Slices {
    int64_t token_tiles, token_pairs, k_tiles, slice;  // slice: k tiles of each but the last

    Slices(int64_t tokens, int64_t K)
        : token_tiles(ceil_div(tokens, kTileSide)), token_pairs(ceil_div(token_tiles, 2)),
          k_tiles(round_up(K, kStepInputs) / kTileInputs),
          slice(std::min(k_tiles, kSliceTiles / 2 / token_pairs / kStepTiles * kStepTiles)) {}

    int64_t begin(int64_t k) const { return k / slice * slice; }
    int64_t count(int64_t begin) const { return std::min(slice, k_tiles - begin); }
    // Expanded k tiles at a time: what no further tokens wait for gives way, and stays in L1.
    int64_t kept() const { return token_pairs > 1 ? slice : 2 * kStepTiles; }
    // Where the tile of 16 tokens and 32 inputs lies.
    int64_t index(int64_t token_tile, int64_t k) const {
        const int64_t pair = begin(k) * token_pairs + token_tile / 2 * count(begin(k));
        return 2 * (pair + k - begin(k)) + token_tile % 2;
    }
};

// Inputs [k, k + 32) of 16 tokens from row 0 of x on as a tile, zero beyond K and `tokens`.
template <bool kRowsFirst>
PK_INLINE void make_token_tile(const uint16_t* x, int64_t K, int64_t tokens, int64_t k,
                               uint16_t* out) {
    const int64_t valid = std::clamp<int64_t>(K - k, 0, kTileInputs);
    const __mmask32 mask = valid == kTileInputs ? 0xffffffffU : (1U << valid) - 1;
    for (int64_t i = 0; i < kTileSide; ++i)
        store_words(out + i * kTileInputs, i < tokens
                                               ? _mm512_maskz_loadu_epi16(mask, x + i * K + k)
                                               : _mm512_setzero_si512());
    if constexpr (kRowsFirst) transpose_tile(out);
}

// Sums of W row tiles x X token tiles to y, rows n .. of tokens m .. m + tokens.
template <bool kRowsFirst, int W, int X>
PK_INLINE void write_sums(const Problem& p, float* sums, int64_t n, int64_t m, int64_t tokens) {
    Vec bias[W];
    int64_t rows[W];
    for (int w = 0; w < W; ++w) {
        const int64_t first = n + w * kTileSide;
        rows[w] = std::min<int64_t>(kTileSide, p.N - first);
        bias[w] = p.bias ? load_some<BF16>(static_cast<const uint16_t*>(p.bias) + first, rows[w])
                         : zero();
        for (int x = 0; kRowsFirst && x < X; ++x) transpose_tile(sums + sums_offset(w, x));
    }
    for (int64_t t = 0; t < std::min<int64_t>(X * kTileSide, tokens); ++t)
        for (int w = 0; w < W; ++w) {  // two row tiles fill a line of y
            const float* line = sums + sums_offset(w, t / kTileSide) + t % kTileSide * kTileSide;
            store_some<BF16>(static_cast<uint16_t*>(p.y) + (m + t) * p.N + n + w * kTileSide,
                             add(load(line), bias[w]), rows[w]);
        }
}

// Tokens first .. first + count of the problem, in tiles.
struct TokenTiles {
    Slices slices;
    const uint16_t* tiles;
    int64_t first, count;
};

// Row tiles [tile_begin, tile_end) with all of x. weights and all_sums: scratch of the thread.
template <class Format>
void multiply_row_tiles(const Problem& p, const typename Format::Weight& w, const TokenTiles& x,
                        int64_t tile_begin, int64_t tile_end, uint16_t* weights, float* all_sums) {
    constexpr bool kRowsFirst = Format::kRowsFirst;
    const Slices& slices = x.slices;
    const bool is_whole = slices.slice == slices.k_tiles;
    typename Format::Cursor cursor(p, w, tile_begin, tile_end);

    for (int64_t k = 0; k < slices.k_tiles; k += slices.slice) {
        const int64_t count = slices.count(k);
        const bool is_first = k == 0, is_last = k + count == slices.k_tiles;
        float* sums = all_sums;

        const auto multiply = [&](auto W, auto X, int64_t tile, int64_t t) {
            const uint16_t* tile_x = x.tiles + slices.index(t, k) * kTileElems;
            if (is_first)
                zero_sums<W(), X()>();
            else
                load_sums<W(), X()>(sums);
            if (t == 0) {
                const auto expand = [&](int64_t i) {
                    uint16_t* out = weights + i % slices.kept() * kPairElems;
                    for (int r = 0; r < W(); ++r)
                        cursor.expand(tile + r, (k + i) / kStepTiles, out + r * kTileElems);
                };
                // A step ahead: a tile that was stored just now takes three times as long to load.
                expand(0);
                for (int64_t i = 0; i < count; i += kStepTiles) {
                    if (i + kStepTiles < count) expand(i + kStepTiles);
                    add_products<kRowsFirst, W(), X()>(weights + i % slices.kept() * kPairElems,
                                                       tile_x + i * kPairElems, kStepTiles);
                }
            } else {
                add_products<kRowsFirst, W(), X()>(weights, tile_x, count);
            }
            store_sums<W(), X()>(sums);
            if (is_last)
                write_sums<kRowsFirst, W(), X()>(p, sums, tile * kTileSide, x.first + t * kTileSide,
                                                 x.count - t * kTileSide);
            if (!is_whole) sums += kBlockSums;
        };
        const auto one_or_two = [](int64_t n) { return static_cast<int>(std::min<int64_t>(n, 2)); };
        for (int64_t tile = tile_begin; tile < tile_end; tile += 2)
            for (int64_t t = 0; t < slices.token_tiles; t += 2)
                with_constant<2>(one_or_two(tile_end - tile), [&](auto W) {
                    with_constant<2>(one_or_two(slices.token_tiles - t),
                                     [&](auto X) { multiply(W, X, tile, t); });
                });
    }
}

template <class Format>
void linear_by_tiles(const Problem& p, const typename Format::Weight& w) {
    const int64_t row_tiles = ceil_div(p.N, kTileSide);
    // Chunks of equal length, so that none is a short rest.
    const int64_t chunk = round_up(ceil_div(p.M, ceil_div(p.M, kTokenChunk)), 2 * kTileSide);
    const Slices longest(std::min(chunk, p.M), p.K);
    Scratch<uint16_t> tiles(longest.token_pairs * longest.k_tiles * kPairElems);
    for (int64_t first = 0; first < p.M; first += chunk) {
        const int64_t count = std::min(chunk, p.M - first);
        const Slices slices(count, p.K);
        parallel_for(p, slices.token_tiles * slices.k_tiles, 64, [&](int64_t b, int64_t e) {
            for (int64_t i = b; i < e; ++i) {
                const int64_t t = i / slices.k_tiles * kTileSide, k = i % slices.k_tiles;
                make_token_tile<Format::kRowsFirst>(
                    static_cast<const uint16_t*>(p.x) + (first + t) * p.K, p.K, count - t,
                    k * kTileInputs, tiles.get() + slices.index(t / kTileSide, k) * kTileElems);
            }
        });
        const TokenTiles x{slices, tiles.get(), first, count};
        parallel_for(p, ceil_div(row_tiles, 2), kWeightsPerTask / (2 * kTileSide * p.K),
                     [&](int64_t b, int64_t e) {
                         Scratch<uint16_t> weights(slices.kept() * kPairElems);
                         Scratch<float> sums(kRowTiles / 2 * slices.token_pairs * kBlockSums);
                         const TileRegisters registers;
                         const int64_t end = std::min(2 * e, row_tiles);
                         for (int64_t tile = 2 * b; tile < end; tile += kRowTiles)
                             multiply_row_tiles<Format>(p, w, x, tile,
                                                        std::min(tile + kRowTiles, end),
                                                        weights.get(), sums.get());
                     });
    }
}

}  // namespace
}  // namespace prunekern
