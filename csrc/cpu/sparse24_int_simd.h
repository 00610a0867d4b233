// y[M,N] = x[M,K] W[N,K]^T with W 2:4 of int8 or int4, for AVX2 and AVX-512; sparse24_int_tile.h
// draws the packed weight.
//
//     lane r:  acc[r] += first[r] * x[pos0[r]] + second[r] * x[pos1[r]]     numbers made floats
//              total[r] += scale[r] * acc[r]                                at the end of a group
//
// As sparse24_simd.h, but for where the kept pair comes from, and that sums of a group are scaled
// once, not weights: a number of 8 bits is exact in fp32.
//
// Limit, decode (M <= kDecodeTokens): 0.625 or 0.375 bytes a weight and a scale a group. At one
// token memory binds, with AVX-512 for both: one core of a Xeon with AMX read 11.9 GB/s of either,
// as it does of 2:4 in bf16. x need not be rounded for that. Each further token costs two permutes
// and two FMAs for 64 weights: from 8 tokens on the core binds. Prefill: see token_panel.h.
#pragma once
#include "sparse24_int_tile.h"
#include "token_panel.h"

namespace prunekern {
namespace {
namespace sparse24_int {

constexpr int kTokenBlock = 8;      // accumulators of one pass
constexpr int64_t kFoldChunks = 8;  // short sums, added up, round less than a long one
constexpr int64_t kDecodeTokens = kLanes == 16 ? 16 : 24;

// One row tile, T tokens: sums over all chunks, then bias, then y.
template <class E, class Number, int T>
void decode_tile(const Problem& p, const Tile<E, Number>& tile, int64_t n0, const float* x,
                 int64_t x_stride, int64_t m0) {
    // Few tokens leave too few independent sums to hide the latency of an FMA: keep two a token.
    constexpr int kSums = T <= 4 ? 2 : 1;
    alignas(64) float totals[T * kLanes] = {};
    const uint8_t* values = tile.values;
    const uint32_t* meta = tile.meta;
    const int64_t fold = std::min(tile.group_chunks, kFoldChunks);

    for (int64_t begin = 0; begin < tile.chunks; begin += fold) {
        Vec acc[T][kSums];
        for (auto& sums : acc)
            for (auto& sum : sums) sum = zero();
        const int64_t end = std::min(begin + fold, tile.chunks);
        for (int64_t c = begin; c < end; ++c) {
            const IVec codes = load_words(meta);
            const Number numbers(values);
            prefetch(reinterpret_cast<const char*>(meta) + kPrefetchBytes / 4);
            prefetch_chunk<Number>(values);
            meta += kTileRows;
            values += Number::kChunkBytes;
#pragma GCC unroll 8
            for (int g = 0; g < kChunkGroups; ++g) {
                const Vec first = numbers.kept(g, 0), second = numbers.kept(g, 1);
                const IVec pos0 = shift_right(codes, 4 * g);
                const IVec pos1 = shift_right(codes, 4 * g + 2);
#pragma GCC unroll 8
                for (int t = 0; t < T; ++t) {
                    const Vec quad = broadcast_quad(x + t * x_stride + 4 * g);
                    acc[t][0] = fmadd(first, select_in_quad(quad, pos0), acc[t][0]);
                    acc[t][kSums - 1] =
                        fmadd(second, select_in_quad(quad, pos1), acc[t][kSums - 1]);
                }
            }
            x += kChunkInputs;
        }
        const Vec scale = tile.scale(begin);
        for (int t = 0; t < T; ++t) {
            Vec sum = acc[t][0];
            if (kSums == 2) sum = add(sum, acc[t][1]);
            store(totals + t * kLanes, fmadd(sum, scale, load(totals + t * kLanes)));
        }
    }

    using Elem = typename E::T;
    const int64_t rows = std::min<int64_t>(p.N - n0, kTileRows);
    const Vec bias = p.bias ? load_some<E>(static_cast<const Elem*>(p.bias) + n0, rows) : zero();
    for (int t = 0; t < T; ++t)
        store_some<E>(static_cast<Elem*>(p.y) + (m0 + t) * p.N + n0,
                      add(load(totals + t * kLanes), bias), rows);
}

template <class E, class Number>
void decode(const Problem& p, const QuantizedSparse24Weight& w) {
    const int64_t x_stride = token_stride<float>(round_up(p.K, kChunkInputs));
    Scratch<float> x(p.M * x_stride);
    widen_tokens<E>(p, x.get(), x_stride);
    parallel_for(p, ceil_div(p.N, kTileRows), kWeightsPerTask / (kTileRows * x_stride),
                 [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i) {
                         const Tile<E, Number> tile(p, w, i);
                         for (int64_t m = 0; m < p.M; m += kTokenBlock) {
                             const int tokens =
                                 static_cast<int>(std::min<int64_t>(kTokenBlock, p.M - m));
                             with_constant<kTokenBlock>(tokens, [&](auto t) {
                                 decode_tile<E, Number, t()>(p, tile, i * kTileRows,
                                                             x.get() + m * x_stride, x_stride, m);
                             });
                         }
                     }
                 });
}

// Prefill: what token_panel.h asks of a format. Terms lie [kept][row], as the lanes bring them.
template <class E, class Number>
struct PanelRows {
    static constexpr int kRows = kTileRows;
    static constexpr int kInputMultiple = kChunkInputs;
    static constexpr int kTermStride = kTileRows;
    static constexpr int kInputsPerTerm = 2;  // at most one kept weight for two inputs

    const Problem& p;
    const QuantizedSparse24Weight& w;
    double density = 0.5;

    struct Cursor {};
    Cursor start(int64_t) const { return {}; }

    void expand(int64_t index, Cursor&, int64_t k_begin, int64_t k_end, uint32_t stride_bytes,
                Terms<PanelRows>& terms) const {
        const Tile<E, Number> tile(p, w, index);
        alignas(16) const uint32_t steps[4] = {0, stride_bytes, 2 * stride_bytes, 3 * stride_bytes};
        const Vec quad = broadcast_quad(reinterpret_cast<const float*>(steps));
        const IVec group_step = broadcast_word(4 * stride_bytes);
        IVec base = broadcast_word(0);
        float* weights = terms.weights;
        uint32_t* offsets = terms.offsets;
        // Whole chunks, also past K: the weights there are zero and the panel is padded.
        const int64_t c0 = k_begin / kChunkInputs, c1 = ceil_div(k_end, kChunkInputs);
        for (int64_t c = c0; c < c1; ++c) {
            const IVec codes = load_words(tile.meta + c * kTileRows);
            const Number numbers(tile.values + c * Number::kChunkBytes);
            const Vec scale = tile.scale(c);
            for (int g = 0; g < kChunkGroups; ++g) {
                for (int j = 0; j < 2; ++j) {
                    store(weights, fmadd(numbers.kept(g, j), scale, zero()));
                    const IVec pos = shift_right(codes, 4 * g + 2 * j);
                    store_words(offsets, add_words(base, as_words(select_in_quad(quad, pos))));
                    weights += kTileRows;
                    offsets += kTileRows;
                }
                base = add_words(base, group_step);
            }
        }
        prefetch_next(tile.values + c1 * Number::kChunkBytes, (c1 - c0) * Number::kChunkBytes);
        prefetch_next(tile.meta + c1 * kTileRows, (c1 - c0) * kTileRows * 4);
        for (int& n : terms.counts) n = static_cast<int>(c1 - c0) * 2 * kChunkGroups;
    }
};

template <class E, class Number>
void linear(const Problem& p, const QuantizedSparse24Weight& w) {
    if (p.M <= kDecodeTokens)
        decode<E, Number>(p, w);
    else
        panel_linear<E>(p, PanelRows<E, Number>{p, w});
}

template <class Number>
void linear_any(const Problem& p, const QuantizedSparse24Weight& w) {
    switch (p.dtype) {
        case DType::kFloat32: return linear<F32, Number>(p, w);
        case DType::kBFloat16: return linear<BF16, Number>(p, w);
        case DType::kFloat16: return linear<F16, Number>(p, w);
    }
}

}  // namespace sparse24_int
}  // namespace
}  // namespace prunekern
