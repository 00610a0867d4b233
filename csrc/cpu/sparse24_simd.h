// y[M,N] = x[M,K] W[N,K]^T with W 2:4 sparse along K, for AVX2 (R = 8) and AVX-512 (R = 16).
//
//   one row tile (R rows side by side), one group of four inputs:
//
//     values   fp32, fp16:  first kept of row 0..R-1 | second kept of row 0..R-1
//              bf16:        a word a row: first kept in the low half, second in the high half
//     meta     a word a row for 8 groups: 4 bits a group, pos0 | pos1 << 2
//     x        x0 x1 x2 x3  repeated in each 128-bit quarter
//
//     lane r:  acc[r] += first[r] * x[pos0[r]] + second[r] * x[pos1[r]]
//
// The choice of the input is one vpermilps, which looks at just the two low bits of a lane: the
// metadata word is shifted, never masked.
//
// Limit, decode (M <= kDecodeTokens): 1.125 bytes a weight (16 bits), memory binds at one token; at
// more, each kept weight costs a permute and an FMA a token, and the two share one of three ports:
// 1.33 cycles a kept vector, against 2 for dense. Prefill: see token_panel.h.
#pragma once
#include "scratch.h"
#include "simd.h"
#include "token_panel.h"

namespace prunekern {
namespace {
namespace sparse24 {

constexpr int kTileRows = kLanes;
constexpr int kChunkGroups = 8;  // one metadata word
constexpr int kChunkInputs = 4 * kChunkGroups;
constexpr int kTokenBlock = 8;      // accumulators of one pass
constexpr int64_t kFoldChunks = 8;  // short sums, added up, round less than a long one
constexpr int64_t kDecodeTokens = kLanes == 16 ? 16 : 24;  // measured, see benchmarks/

// The two kept weights of one group, for the R rows of a tile.
template <class E>
PK_INLINE void load_pair(const typename E::T* v, Vec& first, Vec& second) {
    first = E::load_lanes(v);
    second = E::load_lanes(v + kTileRows);
}
template <>
PK_INLINE void load_pair<BF16>(const uint16_t* v, Vec& first, Vec& second) {
    const IVec words = load_words(v);
    first = low_bf16(words);
    second = high_bf16(words);
}

// R row tiles side by side, each a stream of its own, T tokens: sums over all chunks, then bias,
// then y.
template <class E, int R, int T>
void decode_tiles(const Problem& p, const typename E::T* values, const uint32_t* meta, int64_t n0,
                  const float* x, int64_t x_stride, int64_t m0) {
    const int64_t chunks = ceil_div(p.K, kChunkInputs);
    const int64_t tile_values = chunks * (kChunkInputs / 2) * kTileRows;
    const int64_t tile_meta = chunks * kTileRows;
    // Few rows and tokens leave too few independent sums to hide the latency of an FMA.
    constexpr int kSums = R * T <= 4 ? 2 : 1;
    Vec acc[R][T][kSums];
    const auto clear = [&] {
        for (auto& tokens : acc)
            for (auto& sums : tokens)
                for (auto& sum : sums) sum = zero();
    };
    alignas(64) float totals[R][T][kLanes] = {};
    const auto fold = [&] {
        for (int r = 0; r < R; ++r)
            for (int t = 0; t < T; ++t)
                for (const Vec& sum : acc[r][t]) store(totals[r][t], add(load(totals[r][t]), sum));
    };

    clear();
    for (int64_t c = 0; c < chunks; ++c) {
        if (c % kFoldChunks == kFoldChunks - 1) {
            fold();
            clear();
        }
        IVec codes[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            codes[r] = load_words(meta + r * tile_meta);
            prefetch(reinterpret_cast<const char*>(meta + r * tile_meta) + kPrefetchBytes / 8);
        }
        meta += kTileRows;
#pragma GCC unroll 8
        for (int g = 0; g < kChunkGroups; ++g) {
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                const typename E::T* pair = values + r * tile_values;
                Vec first, second;
                load_pair<E>(pair, first, second);
                prefetch(reinterpret_cast<const char*>(pair) + kPrefetchBytes);
                if (sizeof(*pair) * 2 * kTileRows > 64)
                    prefetch(reinterpret_cast<const char*>(pair) + kPrefetchBytes + 64);
                const IVec pos0 = shift_right(codes[r], 4 * g);
                const IVec pos1 = shift_right(codes[r], 4 * g + 2);
#pragma GCC unroll 8
                for (int t = 0; t < T; ++t) {
                    Vec(&sums)[kSums] = acc[r][t];
                    const Vec quad = broadcast_quad(x + t * x_stride + 4 * g);
                    sums[0] = fmadd(first, select_in_quad(quad, pos0), sums[0]);
                    sums[kSums - 1] = fmadd(second, select_in_quad(quad, pos1), sums[kSums - 1]);
                }
            }
            values += 2 * kTileRows;
        }
        x += kChunkInputs;
    }

    fold();
    using Elem = typename E::T;
    for (int r = 0; r < R; ++r) {
        const int64_t n = n0 + r * kTileRows;
        const int64_t rows = std::min<int64_t>(kTileRows, p.N - n);
        const Vec bias = p.bias ? load_some<E>(static_cast<const Elem*>(p.bias) + n, rows) : zero();
        for (int t = 0; t < T; ++t)
            store_some<E>(static_cast<Elem*>(p.y) + (m0 + t) * p.N + n,
                          add(load(totals[r][t]), bias), rows);
    }
}

template <class E>
void decode(const Problem& p, const Sparse24Weight& w) {
    const int64_t chunks = ceil_div(p.K, kChunkInputs);
    const int64_t x_stride = token_stride<float>(chunks * kChunkInputs);
    Scratch<float> x(p.M * x_stride);
    widen_tokens<E>(p, x.get(), x_stride);

    using Elem = typename E::T;
    const int64_t tile_values = chunks * (kChunkInputs / 2) * kTileRows;
    const auto run = [&](auto r, int64_t tile) {
        for (int64_t m = 0; m < p.M; m += kTokenBlock) {
            const int tokens = static_cast<int>(std::min<int64_t>(kTokenBlock, p.M - m));
            with_constant<kTokenBlock>(tokens, [&](auto t) {
                decode_tiles<E, r(), t()>(
                    p, static_cast<const Elem*>(w.values) + tile * tile_values,
                    static_cast<const uint32_t*>(w.meta) + tile * chunks * kTileRows,
                    tile * kTileRows, x.get() + m * x_stride, x_stride, m);
            });
        }
    };
    parallel_for(p, ceil_div(p.N, kTileRows), kWeightsPerTask / (kTileRows * x_stride),
                 [&](int64_t begin, int64_t end) {
                     const auto run_all = [&](auto r) {
                         int64_t tile = begin;
                         for (; tile + r() <= end; tile += r()) run(r, tile);
                         for (; tile < end; ++tile) run(std::integral_constant<int, 1>{}, tile);
                     };
                     // As many streams as leave all sums in registers.
                     if (p.M <= 2)
                         run_all(std::integral_constant<int, 4>{});
                     else if (p.M <= 4)
                         run_all(std::integral_constant<int, 2>{});
                     else
                         run_all(std::integral_constant<int, 1>{});
                 });
}

// Prefill: what token_panel.h asks of a format. Terms lie [kept][row], as the lanes bring them.
template <class E>
struct PanelRows {
    static constexpr int kRows = kTileRows;
    static constexpr int kInputMultiple = kChunkInputs;
    static constexpr int kTermStride = kTileRows;
    static constexpr int kInputsPerTerm = 2;  // at most one kept weight for two inputs

    const Problem& p;
    const Sparse24Weight& w;
    double density = 0.5;

    struct Cursor {};
    Cursor start(int64_t) const { return {}; }

    void expand(int64_t tile, Cursor&, int64_t k_begin, int64_t k_end, uint32_t stride_bytes,
                Terms<PanelRows>& terms) const {
        using Elem = typename E::T;
        const int64_t chunks = ceil_div(p.K, kChunkInputs);
        const int64_t c0 = k_begin / kChunkInputs;
        const Elem* values = static_cast<const Elem*>(w.values) +
                             (tile * chunks + c0) * (kChunkInputs / 2 * kTileRows);
        const uint32_t* meta =
            static_cast<const uint32_t*>(w.meta) + (tile * chunks + c0) * kTileRows;

        alignas(16) const uint32_t steps[4] = {0, stride_bytes, 2 * stride_bytes, 3 * stride_bytes};
        const Vec quad = broadcast_quad(reinterpret_cast<const float*>(steps));
        const IVec group_step = broadcast_word(4 * stride_bytes);
        IVec base = broadcast_word(0);
        float* weights = terms.weights;
        uint32_t* offsets = terms.offsets;
        // Whole chunks, also past K: the weights there are zero and the panel is padded.
        for (int64_t k = k_begin; k < k_end; k += kChunkInputs) {
            const IVec codes = load_words(meta);
            meta += kTileRows;
            for (int g = 0; g < kChunkGroups; ++g) {
                Vec first, second;
                load_pair<E>(values, first, second);
                values += 2 * kTileRows;
                store(weights, first);
                store(weights + kTileRows, second);
                for (int j = 0; j < 2; ++j) {
                    const IVec pos = shift_right(codes, 4 * g + 2 * j);
                    store_words(offsets + j * kTileRows,
                                add_words(base, as_words(select_in_quad(quad, pos))));
                }
                base = add_words(base, group_step);
                weights += 2 * kTileRows;
                offsets += 2 * kTileRows;
            }
        }
        const int64_t read = ceil_div(k_end - k_begin, kChunkInputs) * kTileRows;
        prefetch_next(values, read * (kChunkInputs / 2) * static_cast<int64_t>(sizeof(Elem)));
        prefetch_next(meta, read * 4);
        const int count =
            static_cast<int>(ceil_div(k_end - k_begin, kChunkInputs)) * (kChunkInputs / 2);
        for (int& n : terms.counts) n = count;
    }
};

template <class E>
void linear(const Problem& p, const Sparse24Weight& w) {
    if (p.M <= kDecodeTokens)
        decode<E>(p, w);
    else
        panel_linear<E>(p, PanelRows<E>{p, w});
}

inline void linear_any(const Problem& p, const Sparse24Weight& w) {
    switch (p.dtype) {
        case DType::kFloat32: return linear<F32>(p, w);
        case DType::kBFloat16: return linear<BF16>(p, w);
        case DType::kFloat16: return linear<F16>(p, w);
    }
}

}  // namespace sparse24
}  // namespace
}  // namespace prunekern
