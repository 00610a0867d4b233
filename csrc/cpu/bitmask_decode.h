// y[M,N] = x[M,K] W[N,K]^T for few tokens and W as bitmask + kept values: lanes are inputs.
//
//   one row tile (4 rows), one chunk (64 inputs):
//
//     bitmask   row 0 | row 1 | row 2 | row 3          64-bit words; bit j: weight j of the chunk
//     values    row 0 ... | row 1 ... | row 2 .. | row 3 ....    one for each bit, no gaps
//
//     expand    bits     1 0 0 1 1 0 1 0 ...           one instruction on AVX-512,
//               values   a b c d e ...                 a table of 256 shuffles on AVX2
//               vector   a 0 0 b c 0 d 0 ...           then a dense multiply-add with x
//
// Four rows a tile, since their chunks follow each other in memory: one stream, and x loaded once
// for four rows. The zeros are multiplied; only the bytes are saved.
//
// Limit: 2 * density + 1/8 bytes a weight (16 bits), 1.125 at half: memory binds at one token. At
// more tokens the multiplications of dense plus one expansion for kInputs weights of a row.
#pragma once
#include <algorithm>

#include "scratch.h"
#include "simd.h"

namespace prunekern {
namespace {
namespace bitmask {

constexpr int kTileRows = 4;
constexpr int kChunkInputs = 64;
// Places from which a thread reads its share of the weight, each up to where the next one starts.
// Measured on two cores of a Xeon, 4096 x 4096 at half density from memory: 0.81 ms with one, 0.65
// with two, 0.67 with four; 0.74, in another run, with four row tiles side by side, which end too
// soon to be asked for ahead.
constexpr int kStreams = 2;

PK_INLINE int64_t popcount(uint64_t bits) { return static_cast<int64_t>(_mm_popcnt_u64(bits)); }

// S row tiles, `apart` from each other, R rows of each from row r0, T tokens. Lanes says how many
// inputs a vector has (kInputs), how it is expanded and multiplied; E is the dtype of bias and y.
template <class Lanes, class E, int S, int R, int T>
void decode_rows(const Problem& p, const BitmaskWeight& w, int64_t tile, int64_t apart, int r0,
                 const typename Lanes::X* x, int64_t x_stride, int64_t m0) {
    using Value = typename Lanes::Elem;
    const int64_t chunks = ceil_div(p.K, kChunkInputs);
    const uint64_t* masks = static_cast<const uint64_t*>(w.bitmask) + tile * chunks * kTileRows;
    const Value* values[S];
    for (int s = 0; s < S; ++s)
        values[s] = static_cast<const Value*>(w.values) + w.offsets[tile + s * apart];
    Vec acc[S][R][T];
    for (auto& rows : acc)
        for (auto& row : rows)
            for (auto& sum : row) sum = zero();

    for (int64_t c = 0; c < chunks; ++c, x += kChunkInputs, masks += kTileRows) {
#pragma GCC unroll 4
        for (int s = 0; s < S; ++s) {
            const uint64_t* tile_masks = masks + s * apart * chunks * kTileRows;
            uint64_t bits[R];
            const Value* v[R];
            for (int r = 0; r < r0; ++r) values[s] += popcount(tile_masks[r]);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                bits[r] = tile_masks[r0 + r];
                v[r] = values[s];
                values[s] += popcount(bits[r]);
                for (size_t line = 0; line < sizeof(Value) / 2; ++line)
                    prefetch(reinterpret_cast<const char*>(v[r]) + kPrefetchBytes + line * 64);
            }
            for (int r = r0 + R; r < kTileRows; ++r) values[s] += popcount(tile_masks[r]);
            prefetch(reinterpret_cast<const char*>(tile_masks) + kPrefetchBytes / 4);

#pragma GCC unroll 8
            for (int j = 0; j < kChunkInputs; j += Lanes::kInputs) {
                typename Lanes::Weights weights[R];
#pragma GCC unroll 4
                for (int r = 0; r < R; ++r) {
                    const auto some = static_cast<typename Lanes::Bits>(bits[r] >> j);
                    weights[r] = Lanes::expand(some, v[r]);
                    v[r] += popcount(some);
                }
#pragma GCC unroll 16
                for (int t = 0; t < T; ++t) {
                    const typename Lanes::Weights inputs = Lanes::load(x + t * x_stride + j);
#pragma GCC unroll 4
                    for (int r = 0; r < R; ++r)
                        acc[s][r][t] = Lanes::multiply_add(weights[r], inputs, acc[s][r][t]);
                }
            }
        }
    }

    using Elem = typename E::T;
    for (int s = 0; s < S; ++s)
        for (int r = 0; r < R; ++r) {
            const int64_t n = (tile + s * apart) * kTileRows + r0 + r;
            if (n >= p.N) break;
            for (int t = 0; t < T; ++t) {
                float sum = reduce_add(acc[s][r][t]);
                if (p.bias) sum += load_one<E>(static_cast<const Elem*>(p.bias) + n);
                store_one<E>(static_cast<Elem*>(p.y) + (m0 + t) * p.N + n, sum);
            }
        }
}

// As many rows as leave all sums in registers.
constexpr int rows_of(int sums) { return sums >= kTileRows ? kTileRows : sums >= 2 ? 2 : 1; }

// All tokens against all rows; x [M, x_stride] is zero beyond K.
template <class Lanes, class E>
void decode(const Problem& p, const BitmaskWeight& w, const typename Lanes::X* x,
            int64_t x_stride) {
    const int64_t passes = ceil_div(p.M, Lanes::kMaxTokens);
    const auto run = [&](auto streams, int64_t tile, int64_t apart) {
        for (int64_t i = 0; i < passes; ++i) {
            const int64_t m = i * p.M / passes;
            const int tokens = static_cast<int>((i + 1) * p.M / passes - m);
            with_constant<Lanes::kMaxTokens>(tokens, [&](auto t) {
                constexpr int kRows = rows_of(Lanes::kMaxSums / t());
                // More tokens than one stream has sums for take the streams in turn.
                constexpr int kSide =
                    streams() * kTileRows * t() <= Lanes::kMaxSums ? streams() : 1;
                for (int s = 0; s < streams(); s += kSide)
                    for (int r0 = 0; r0 < kTileRows; r0 += kRows)
                        decode_rows<Lanes, E, kSide, kRows, t()>(p, w, tile + s * apart, apart, r0,
                                                                 x + m * x_stride, x_stride, m);
            });
        }
    };
    parallel_for(p, ceil_div(p.N, kTileRows), kWeightsPerTask / (kTileRows * x_stride),
                 [&](int64_t begin, int64_t end) {
                     const int64_t apart = (end - begin) / kStreams;
                     for (int64_t i = 0; i < apart; ++i)
                         run(std::integral_constant<int, kStreams>{}, begin + i, apart);
                     for (int64_t tile = begin + kStreams * apart; tile < end; ++tile)
                         run(std::integral_constant<int, 1>{}, tile, 1);
                 });
}

}  // namespace bitmask
}  // namespace
}  // namespace prunekern
