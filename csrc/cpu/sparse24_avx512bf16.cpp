// y[M,N] = x[M,K] W[N,K]^T with W 2:4 sparse along K, bf16, on AVX512-BF16: a sparse tensor core in
// software. A row keeps two of four inputs, so there are six pairs of inputs it can want, and one
// vdpbf16ps multiplies a kept pair of weights with a pair of inputs: half the work of dense.
//
//   one row tile (16 rows), one group g of four inputs:
//     values   word r: the two kept weights of row r           (64 bytes)
//     meta     word r: 4 bits a group, 8 groups:  pair | 8 * (g & 1),  pair 0..5 =
//              (0,1) (0,2) (0,3) (1,2) (1,3) (2,3)
//
// Decode: lanes are rows. The pairs of two groups fill one register, and the metadata picks:
//     pairs of token t:  [g: 01 02 03 12 13 23 - - | g+1: 01 02 03 12 13 23 - -]
//     acc[r] += values[r] . vpermd(pairs, meta)[r]
//   Limit: at one token 1.125 bytes a weight, memory binds; then one vpermd and one dot for 64
//   dense multiplications: 1.33 cycles on Zen 4 (three ports), 1 on Zen 5, against 2 and 1 dense.
//
// Prefill: lanes are tokens. The six pair-vectors of a group lie in L1, the kept pair of weights is
// broadcast, and the metadata says which of the six is the operand:
//     pairs[g][pair][64 tokens],   acc[row][token] += broadcast(values[row]) . pairs[g][meta[row]]
//   Limit: one load a dot and one broadcast for four: 1.25 cycles on Zen 4 where a load feeds every
//   dot, against 2 for dense; on Zen 5 loads bind at half of the dot rate (see CONTRIBUTING).
#include <algorithm>
#include <memory>

#include "bf16_pairs.h"
#include "scratch.h"
#include "simd.h"

namespace prunekern {
namespace {

constexpr int kTileRows = 16;
constexpr int kChunkGroups = 8;  // one metadata word
constexpr int kChunkInputs = 4 * kChunkGroups;
constexpr int kPairs = 6;
constexpr int64_t kDecodeTokens = 40;  // up to here lanes of tokens would run half empty

// ---------------------------------------------------------------------------------------- decode

// The pairs of two neighbouring groups, in the order in which metadata counts them.
PK_INLINE __m512i pair_table(const uint16_t* eight_inputs) {
    const __m512i order = _mm512_set_epi16(4, 4, 4, 4, 7, 6, 7, 5, 6, 5, 7, 4, 6, 4, 5, 4,  //
                                           0, 0, 0, 0, 3, 2, 3, 1, 2, 1, 3, 0, 2, 0, 1, 0);
    const __m512i inputs =
        _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(eight_inputs)));
    return _mm512_permutexvar_epi16(order, inputs);
}

// R row tiles side by side share every table that they load; T tokens share every weight. Each row
// tile is a stream of its own: at one token, from memory with pages of 4 KB, four take 0.64 ms for
// 4096 x 4096 on two cores of a Xeon, one 0.93, as a lone stream waits at the start of each page.
template <int R, int T>
void decode_tiles(const Problem& p, const uint32_t* values, const uint32_t* meta, int64_t n0,
                  const uint32_t* tables, int64_t table_stride, int64_t m0) {
    const int64_t chunks = ceil_div(p.K, kChunkInputs);
    const int64_t tile_values = chunks * kChunkGroups * kTileRows;
    const int64_t tile_meta = chunks * kTileRows;
    // A lone sum would wait for the dot before it: two a token hide the latency.
    constexpr int kSums = R * T <= 4 ? 2 : 1;
    __m512 acc[kSums][R][T];
    for (auto& tile : acc)
        for (auto& row : tile)
            for (auto& sum : row) sum = _mm512_setzero_ps();

    for (int64_t c = 0; c < chunks; ++c) {
        __m512i codes[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            codes[r] = _mm512_loadu_si512(meta + r * tile_meta);
            prefetch(reinterpret_cast<const char*>(meta + r * tile_meta) + kPrefetchBytes / 8);
        }
        meta += kTileRows;
#pragma GCC unroll 4
        for (int h = 0; h < kChunkGroups / 2; ++h) {
            __m512i weights[2][R], picks[2][R];
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                const uint32_t* v = values + r * tile_values;
                for (int j = 0; j < 2; ++j) {
                    prefetch(reinterpret_cast<const char*>(v + j * kTileRows) + kPrefetchBytes);
                    weights[j][r] = _mm512_loadu_si512(v + j * kTileRows);
                    picks[j][r] = _mm512_srl_epi32(codes[r], _mm_cvtsi32_si128(8 * h + 4 * j));
                }
            }
            values += 2 * kTileRows;
#pragma GCC unroll 8
            for (int t = 0; t < T; ++t) {
                const __m512i table = _mm512_loadu_si512(tables + t * table_stride);
#pragma GCC unroll 4
                for (int r = 0; r < R; ++r)
                    for (int j = 0; j < 2; ++j)
                        acc[j % kSums][r][t] =
                            dot_pairs(acc[j % kSums][r][t], weights[j][r],
                                      _mm512_permutexvar_epi32(picks[j][r], table));
            }
            tables += 16;
        }
    }

    for (int r = 0; r < R; ++r) {
        const int64_t n = n0 + r * kTileRows;
        const int64_t rows = std::min<int64_t>(kTileRows, p.N - n);
        const Vec bias =
            p.bias ? load_some<BF16>(static_cast<const uint16_t*>(p.bias) + n, rows) : zero();
        for (int t = 0; t < T; ++t) {
            const Vec sum = kSums == 2 ? add(acc[0][r][t], acc[kSums - 1][r][t]) : acc[0][r][t];
            store_some<BF16>(static_cast<uint16_t*>(p.y) + (m0 + t) * p.N + n, add(sum, bias),
                             rows);
        }
    }
}

constexpr int kTokenBlock = 8;

void decode(const Problem& p, const Sparse24Weight& w) {
    const int64_t chunks = ceil_div(p.K, kChunkInputs);
    const int64_t padded_K = chunks * kChunkInputs;
    const int64_t table_stride = token_stride<uint32_t>(padded_K * 2);  // 16 words for 8 inputs
    Scratch<uint16_t> x(p.M * padded_K);
    pad_tokens(p, x.get(), padded_K);
    Scratch<uint32_t> tables(p.M * table_stride);
    const int64_t eights = padded_K / 8;
    parallel_for(p, p.M * eights, 4096, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            _mm512_store_si512(tables.get() + i / eights * table_stride + i % eights * 16,
                               pair_table(x.get() + i * 8));
    });

    const auto* values = static_cast<const uint32_t*>(w.values);
    const auto* meta = static_cast<const uint32_t*>(w.meta);
    const int64_t tiles = ceil_div(p.N, kTileRows);
    parallel_for(p, tiles, kWeightsPerTask / (kTileRows * padded_K), [&](int64_t b, int64_t e) {
        const auto run = [&](auto r, int64_t tile) {
            for (int64_t m = 0; m < p.M; m += kTokenBlock) {
                const int tokens = static_cast<int>(std::min<int64_t>(kTokenBlock, p.M - m));
                with_constant<kTokenBlock>(tokens, [&](auto t) {
                    decode_tiles<r(), t()>(p, values + tile * chunks * kChunkGroups * kTileRows,
                                           meta + tile * chunks * kTileRows, tile * kTileRows,
                                           tables.get() + m * table_stride, table_stride, m);
                });
            }
        };
        const auto run_all = [&](auto r) {
            int64_t tile = b;
            for (; tile + r() <= e; tile += r()) run(r, tile);
            for (; tile < e; ++tile) run(std::integral_constant<int, 1>{}, tile);
        };
        // As many streams as leave all sums in registers: one fills neither memory nor the core.
        if (p.M <= 4)
            run_all(std::integral_constant<int, 4>{});
        else
            run_all(std::integral_constant<int, 2>{});
    });
}

// --------------------------------------------------------------------------------------- prefill

constexpr int kVecs = 4;          // 64 tokens: accumulators of one row
constexpr int kBlockGroups = 16;  // 16 groups x 6 pairs x 64 tokens = 24 KB of a 32 KB L1
constexpr int kBlockInputs = 4 * kBlockGroups;

// The six pair-vectors of each group, from the two that the panel has.
template <int T>
void spread_pairs(const uint32_t* panel, int groups, uint32_t* pairs) {
    const __m512i low = _mm512_set1_epi32(0xffff);
    const __mmask32 odd = 0xaaaaaaaa;
    for (int g = 0; g < groups; ++g)
        for (int t = 0; t < T; ++t) {
            const __m512i x01 = _mm512_loadu_si512(panel + (2 * g * T + t) * 16);
            const __m512i x23 = _mm512_loadu_si512(panel + ((2 * g + 1) * T + t) * 16);
            const __m512i x1 = _mm512_srli_epi32(x01, 16);
            const __m512i x2_high = _mm512_slli_epi32(x23, 16);
            const __m512i x0 = _mm512_and_si512(x01, low);
            uint32_t* out = pairs + (g * kPairs * T + t) * 16;
            _mm512_store_si512(out, x01);
            _mm512_store_si512(out + 1 * T * 16, _mm512_or_si512(x0, x2_high));
            _mm512_store_si512(out + 2 * T * 16, _mm512_mask_blend_epi16(odd, x01, x23));
            _mm512_store_si512(out + 3 * T * 16, _mm512_or_si512(x1, x2_high));
            _mm512_store_si512(out + 4 * T * 16, _mm512_mask_blend_epi16(odd, x1, x23));
            _mm512_store_si512(out + 5 * T * 16, x23);
        }
}

// sums[T vectors] += one row's kept pairs of up to kBlockGroups groups.
template <int T>
PK_INLINE void add_row(const uint32_t* values, const uint32_t* meta, int chunks,
                       const uint32_t* pairs, float* sums) {
    __m512 acc[T];
    for (int t = 0; t < T; ++t) acc[t] = _mm512_load_ps(sums + t * 16);
    for (int c = 0; c < chunks; ++c) {
        uint32_t codes = meta[c * kTileRows];
#pragma GCC unroll 8
        for (int g = 0; g < kChunkGroups; ++g) {
            const uint32_t* line = pairs + ((c * kChunkGroups + g) * kPairs + (codes & 7)) * T * 16;
            codes >>= 4;
            const __m512i weight =
                _mm512_set1_epi32(static_cast<int>(values[(c * kChunkGroups + g) * kTileRows]));
#pragma GCC unroll 4
            for (int t = 0; t < T; ++t)
                acc[t] = dot_pairs(acc[t], weight, _mm512_load_si512(line + t * 16));
        }
    }
    for (int t = 0; t < T; ++t) _mm512_store_ps(sums + t * 16, acc[t]);
}

template <int T>
void prefill_rows(const Problem& p, const Sparse24Weight& w, const uint32_t* panel,
                  int64_t tile_begin, int64_t tile_end, int64_t m0, int64_t tokens) {
    const int64_t chunks = ceil_div(p.K, kChunkInputs);
    constexpr int64_t kWidth = T * 16;
    constexpr int64_t kBlockTiles = kRowBlock / kTileRows;
    Scratch<float> sums(kRowBlock * kWidth);
    Scratch<uint32_t> pairs(kBlockGroups * kPairs * kWidth);
    for (int64_t block = tile_begin; block < tile_end; block += kBlockTiles) {
        const int64_t tiles = std::min(kBlockTiles, tile_end - block);
        std::fill_n(sums.get(), tiles * kTileRows * kWidth, 0.0F);
        for (int64_t c = 0; c < chunks; c += kBlockGroups / kChunkGroups) {
            const int some =
                static_cast<int>(std::min<int64_t>(kBlockGroups / kChunkGroups, chunks - c));
            spread_pairs<T>(panel + c * (kChunkInputs / 2) * kWidth, some * kChunkGroups,
                            pairs.get());
            for (int64_t i = 0; i < tiles; ++i) {
                const int64_t first = (block + i) * chunks + c;
                const auto* values =
                    static_cast<const uint32_t*>(w.values) + first * kChunkGroups * kTileRows;
                const auto* meta = static_cast<const uint32_t*>(w.meta) + first * kTileRows;
                prefetch_next(values + some * kChunkGroups * kTileRows,
                              int64_t{4} * some * kChunkGroups * kTileRows);
                prefetch_next(meta + some * kTileRows, int64_t{4} * some * kTileRows);
                for (int r = 0; r < kTileRows; ++r)
                    add_row<T>(values + r, meta + r, some, pairs.get(),
                               sums.get() + (i * kTileRows + r) * kWidth);
            }
        }
        const int64_t n0 = block * kTileRows;
        write_sums<BF16>(p, sums.get(), kWidth, n0, std::min<int64_t>(tiles * kTileRows, p.N - n0),
                         m0, tokens);
    }
}

void prefill(const Problem& p, const Sparse24Weight& w) {
    for_each_pair_panel<kVecs>(
        p, round_up(p.K, kChunkInputs), kTileRows,
        [&](auto t, const uint32_t* panel, int64_t begin, int64_t end, int64_t m0, int64_t tokens) {
            prefill_rows<t()>(p, w, panel, begin, end, m0, tokens);
        });
}

}  // namespace

void sparse24_linear_avx512bf16(const Problem& p, const Sparse24Weight& w) {
    if (p.M <= kDecodeTokens)
        decode(p, w);
    else
        prefill(p, w);
}

}  // namespace prunekern
