// csr_linear for AVX2 (8 lanes) and AVX-512 (16 lanes), any dtype, 16- or 32-bit columns.
//
//   values        row 0 .......... | row 1 ... | row 2 ...... | ... | 64 of padding
//   col_indices   row 0 .......... | row 1 ... | row 2 ...... | ... | 64 of padding
//   crow_indices  where each row starts       (what is read beyond the end of a row is not used)
//
// Few tokens: lanes are the kept weights of a row, x is gathered. More tokens: lanes are tokens,
// see token_panel.h: a kept weight is broadcast, its column says which line of the panel it meets.
//
// Limit: 4 bytes a kept weight (16-bit values and columns), so at half density as much as dense,
// and memory gains nothing; one gathered element a cycle binds at one token and high sparsity. More
// tokens: one multiply-add a kept weight and vector of tokens.
#pragma once
#include <algorithm>

#include "scratch.h"
#include "simd.h"
#include "token_panel.h"

namespace prunekern {
namespace {
namespace csr {

// kLanes columns as 32-bit words.
template <class Column>
PK_INLINE IVec load_columns(const Column* p) {
    if constexpr (sizeof(Column) == 2)
        return widen_u16(load_halves(p));
    else
        return load_words(p);
}

constexpr int kDecodeTokens = 4;  // measured: gathering for each beats panels with idle lanes

// T tokens: y[t][n] = sum over the row of value * x[t][column].
template <class E, class Column, int T>
void decode_rows(const Problem& p, const CsrWeight& w, const float* x, int64_t x_stride,
                 int64_t begin, int64_t end) {
    using Elem = typename E::T;
    const auto* values = static_cast<const Elem*>(w.values);
    const auto* columns = static_cast<const Column*>(w.col_indices);
    // One token's sum would wait for itself: four take turns.
    constexpr int kSums = T == 1 ? 4 : 2;
    for (int64_t n = begin; n < end; ++n) {
        int64_t j = w.crow_indices[n];
        const int64_t row_end = w.crow_indices[n + 1];
        Vec acc[kSums][T];
        for (auto& sums : acc)
            for (auto& sum : sums) sum = zero();
        const auto add_lanes = [&](Vec(&sums)[T], Vec weights) {
            const IVec column = load_columns(columns + j);
#pragma GCC unroll 4
            for (int t = 0; t < T; ++t)
                sums[t] = fmadd(weights, gather(x + t * x_stride, column), sums[t]);
        };
        prefetch(reinterpret_cast<const char*>(values + j) + kPrefetchBytes);
        prefetch(reinterpret_cast<const char*>(columns + j) + kPrefetchBytes);
        while (j + kSums * kLanes <= row_end) {
            prefetch(reinterpret_cast<const char*>(values + j) + kPrefetchBytes + 64);
            prefetch(reinterpret_cast<const char*>(columns + j) + kPrefetchBytes + 64);
#pragma GCC unroll 4
            for (int s = 0; s < kSums; ++s, j += kLanes)
                add_lanes(acc[s], E::load_lanes(values + j));
        }
        for (; j + kLanes <= row_end; j += kLanes) add_lanes(acc[0], E::load_lanes(values + j));
        // What lies beyond the row is the next row's, or padding: its columns are safe to gather.
        if (j < row_end) add_lanes(acc[1], first_lanes(E::load_lanes(values + j), row_end - j));
        for (int t = 0; t < T; ++t) {
            for (int s = 1; s < kSums; ++s) acc[0][t] = add(acc[0][t], acc[s][t]);
            float sum = reduce_add(acc[0][t]);
            if (p.bias) sum += load_one<E>(static_cast<const Elem*>(p.bias) + n);
            store_one<E>(static_cast<Elem*>(p.y) + t * p.N + n, sum);
        }
    }
}

// More tokens: what token_panel.h asks of a format.
template <class E, class Column>
struct PanelRows {
    static constexpr int kRows = 1;
    static constexpr int kInputMultiple = 1;
    static constexpr int kTermStride = 1;
    static constexpr int kInputsPerTerm = 1;

    const Problem& p;
    const CsrWeight& w;
    double density;

    using Cursor = int64_t;  // the row's next kept weight
    Cursor start(int64_t row) const { return w.crow_indices[row]; }

    void expand(int64_t row, Cursor& next, int64_t k_begin, int64_t k_end, uint32_t stride_bytes,
                Terms<PanelRows>& terms) const {
        const auto* values = static_cast<const typename E::T*>(w.values) + next;
        const auto* columns = static_cast<const Column*>(w.col_indices) + next;
        const int64_t left = w.crow_indices[row + 1] - next;
        const IVec first = broadcast_word(static_cast<uint32_t>(k_begin));
        const IVec last = broadcast_word(static_cast<uint32_t>(k_end));
        const IVec stride = broadcast_word(stride_bytes);
        int64_t n = 0;
        while (n < left) {
            const IVec column = load_columns(columns + n);
            store(terms.weights + n, E::load_lanes(values + n));
            store_words(terms.offsets + n, mul_words(sub_words(column, first), stride));
            const int below = count_less(column, last);  // columns ascend: the leading lanes
            // A constant, not `below`: the next step need not wait for this one's comparison.
            if (below < kLanes) {
                n += below;
                break;
            }
            n += kLanes;
        }
        n = std::min(n, left);  // the lanes beyond the row's end are the next row's
        terms.counts[0] = static_cast<int>(n);
        next += n;
        prefetch_next(values + n, n * static_cast<int64_t>(sizeof(*values)));
        prefetch_next(columns + n, n * static_cast<int64_t>(sizeof(*columns)));
    }
};

template <class E, class Column>
void linear(const Problem& p, const CsrWeight& w) {
    const int64_t per_row = w.crow_indices[p.N] / p.N + 1;
    if (p.M > kDecodeTokens) {
        const double density = static_cast<double>(per_row) / static_cast<double>(p.K);
        return panel_linear<E>(p, PanelRows<E, Column>{p, w, density});
    }
    const int64_t stride = token_stride<float>(p.K);
    Scratch<float> x(p.M * stride);
    widen_tokens<E>(p, x.get(), stride);
    parallel_for(p, p.N, kWeightsPerTask / per_row, [&](int64_t begin, int64_t end) {
        with_constant<kDecodeTokens>(static_cast<int>(p.M), [&](auto t) {
            decode_rows<E, Column, t()>(p, w, x.get(), stride, begin, end);
        });
    });
}

template <class E>
void linear_any_columns(const Problem& p, const CsrWeight& w) {
    if (w.wide_columns)
        linear<E, int32_t>(p, w);
    else
        linear<E, uint16_t>(p, w);
}

inline void linear_any(const Problem& p, const CsrWeight& w) {
    switch (p.dtype) {
        case DType::kFloat32: return linear_any_columns<F32>(p, w);
        case DType::kBFloat16: return linear_any_columns<BF16>(p, w);
        case DType::kFloat16: return linear_any_columns<F16>(p, w);
    }
}

}  // namespace csr
}  // namespace
}  // namespace prunekern
