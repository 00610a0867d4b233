// y[M,N] = x[M,K] W[N,K]^T for many tokens and any sparse W: lanes are tokens, indices drive.
//
//   panel (K_block inputs of T*L tokens, x transposed, fp32, fits in L1)
//
//              tokens 0 .. L-1 | L .. 2L-1 | ... T vectors
//     input 0  ..................................
//     input 1  ..................................  <- a kept weight w[n, k] is broadcast once and
//     ...                                             multiplied with line k: T FMAs, each with its
//     input K_block-1 ...........................     operand straight from L1
//
// A format only has to say which terms (weight, line of the panel) each of its rows has between two
// inputs; the loop over them is the same for 2:4, bitmask and CSR.
//
// Limit: T FMAs and T + 2 loads a kept weight for kLanes * T tokens, at one or two of each a cycle:
// dense time times density times (T + 2) / T. Nothing is gained from the zeros but not doing them.
#pragma once
#include <algorithm>
#include <memory>
#include <vector>

#include "panels.h"
#include "scratch.h"
#include "simd.h"

namespace prunekern {
namespace {

// T at most: the sums of one row, beside its weight, in 16 or 32 registers; measured.
constexpr int kPanelVecs = kLanes == 8 ? 11 : 8;
constexpr int64_t kPanelBytes = 24 * 1024;  // of a 32 KB L1; the rest is terms and sums
constexpr double kTermsPerVisit = 40;       // enough to pay for a visit to a row, measured
constexpr int64_t kMaxBlockInputs = 1024;

// The kept weights of one row tile between two inputs. Term j of row r is at j * kTermStride + r *
// (kTermStride == 1 ? kMaxTerms : 1).
template <class Rows>
struct Terms {
    static constexpr int kMaxTerms = kMaxBlockInputs / Rows::kInputsPerTerm + kLanes;
    static constexpr int kRowStride = Rows::kTermStride == 1 ? kMaxTerms : 1;
    alignas(64) float weights[Rows::kRows * kMaxTerms];
    alignas(64) uint32_t offsets[Rows::kRows * kMaxTerms];  // bytes from the start of the panel
    int counts[Rows::kRows];
};

// x as fp32 [M, stride], zero beyond K.
template <class E>
void widen_tokens(const Problem& p, float* out, int64_t stride) {
    parallel_for(p, p.M, ceil_div(kWeightsPerTask, p.K), [&](int64_t begin, int64_t end) {
        for (int64_t m = begin; m < end; ++m) {
            const auto* row = static_cast<const typename E::T*>(p.x) + m * p.K;
            int64_t k = 0;
            for (; k + kLanes <= p.K; k += kLanes)
                store(out + m * stride + k, E::load_lanes(row + k));
            for (; k < stride; k += kLanes)
                store(out + m * stride + k, load_some<E>(row + k, std::max<int64_t>(0, p.K - k)));
        }
    });
}

// Inputs [k_begin, k_end) of `tokens` tokens to panel[k - k_begin][width], zero beyond both.
template <class E>
void transpose_panel(const typename E::T* x, int64_t K, int64_t tokens, int64_t k_begin,
                     int64_t k_end, float* panel, int64_t width) {
    alignas(64) float block[kLanes][kLanes];
    for (int64_t k = k_begin; k < k_end; k += kLanes) {
        const int64_t inputs = std::min<int64_t>(kLanes, k_end - k);
        const int64_t valid = std::clamp<int64_t>(K - k, 0, kLanes);
        for (int64_t t = 0; t < width; t += kLanes) {
            for (int64_t i = 0; i < kLanes; ++i)
                store(block[i], t + i < tokens ? load_some<E>(x + (t + i) * K + k, valid) : zero());
            for (int64_t j = 0; j < inputs; ++j)
                for (int64_t i = 0; i < kLanes; ++i)
                    panel[(k - k_begin + j) * width + t + i] = block[i][j];
        }
    }
}

// sums[T vectors] += sum over the terms of one row. Fewer vectors than an FMA's latency needs are
// made up for by splitting the terms over kWays partial sums. A block's sum starts from zero: short
// sums, added up, round less than a long one.
template <int T, int kTermStride>
PK_INLINE void add_terms(const float* panel, const float* weights, const uint32_t* offsets,
                         int count, float* sums) {
    constexpr int kWays = T >= 4 ? 1 : 4 / T;
    Vec acc[kWays][T];
    for (auto& way : acc)
        for (auto& sum : way) sum = zero();
    const char* base = reinterpret_cast<const char*>(panel);
    int j = 0;
    for (; j + kWays <= count; j += kWays) {
#pragma GCC unroll 4
        for (int way = 0; way < kWays; ++way) {
            const Vec weight = broadcast(weights[(j + way) * kTermStride]);
            const float* line =
                reinterpret_cast<const float*>(base + offsets[(j + way) * kTermStride]);
#pragma GCC unroll 11
            for (int t = 0; t < T; ++t)
                acc[way][t] = fmadd(weight, load(line + t * kLanes), acc[way][t]);
        }
    }
    for (; j < count; ++j) {
        const Vec weight = broadcast(weights[j * kTermStride]);
        const float* line = reinterpret_cast<const float*>(base + offsets[j * kTermStride]);
        for (int t = 0; t < T; ++t) acc[0][t] = fmadd(weight, load(line + t * kLanes), acc[0][t]);
    }
    for (int t = 0; t < T; ++t) {
        for (int way = 1; way < kWays; ++way) acc[0][t] = add(acc[0][t], acc[way][t]);
        store(sums + t * kLanes, add(load(sums + t * kLanes), acc[0][t]));
    }
}

// Inputs of one block: as many as L1 holds; more, from L2, if a row would have too few terms in it.
inline int64_t block_inputs(int64_t width, double density, int64_t multiple) {
    const int64_t fitting = kPanelBytes / (width * 4);
    const auto wanted = static_cast<int64_t>(kTermsPerVisit / std::max(density, 1e-3));
    const int64_t inputs =
        std::min(density < 0.4 ? std::max(fitting, wanted) : fitting, kMaxBlockInputs);
    return std::max(inputs / multiple * multiple, multiple);
}

// All rows of tiles [tile_begin, tile_end) against one panel of `tokens` tokens, T vectors wide.
template <class E, class Rows, int T>
void panel_rows(const Problem& p, const Rows& rows, const float* panel, int64_t tile_begin,
                int64_t tile_end, int64_t m0, int64_t tokens) {
    constexpr int64_t kWidth = T * kLanes;
    const int64_t k_block = block_inputs(kWidth, rows.density, Rows::kInputMultiple);
    constexpr int64_t kBlockTiles = kRowBlock / Rows::kRows;
    Scratch<float> sums(kRowBlock * kWidth);
    auto terms = std::make_unique<Terms<Rows>>();
    std::vector<typename Rows::Cursor> cursors(kBlockTiles);

    for (int64_t block = tile_begin; block < tile_end; block += kBlockTiles) {
        const int64_t tiles = std::min(kBlockTiles, tile_end - block);
        for (int64_t i = 0; i < tiles; ++i) cursors[i] = rows.start(block + i);
        std::fill_n(sums.get(), tiles * Rows::kRows * kWidth, 0.0F);
        for (int64_t k = 0; k < p.K; k += k_block) {
            const int64_t k_end = std::min(k + k_block, p.K);
            const float* lines = panel + k * kWidth;
            for (int64_t i = 0; i < tiles; ++i) {
                rows.expand(block + i, cursors[i], k, k_end, kWidth * sizeof(float), *terms);
                for (int r = 0; r < Rows::kRows; ++r)
                    add_terms<T, Rows::kTermStride>(
                        lines, terms->weights + r * Terms<Rows>::kRowStride,
                        terms->offsets + r * Terms<Rows>::kRowStride, terms->counts[r],
                        sums.get() + (i * Rows::kRows + r) * kWidth);
            }
        }
        const int64_t n0 = block * Rows::kRows;
        write_sums<E>(p, sums.get(), kWidth, n0, std::min<int64_t>(tiles * Rows::kRows, p.N - n0),
                      m0, tokens);
    }
}

// y = x W^T for a format's rows; see Terms and PanelRows of the formats for what Rows must have.
template <class E, class Rows>
void panel_linear(const Problem& p, const Rows& rows) {
    for_each_panel<kPanelVecs, float>(
        p, round_up(p.K, Rows::kInputMultiple), Rows::kRows,
        [&](int64_t m0, int64_t tokens, int64_t k_begin, int64_t k_end, float* out, int64_t width) {
            transpose_panel<E>(static_cast<const typename E::T*>(p.x) + m0 * p.K, p.K, tokens,
                               k_begin, k_end, out, width);
        },
        [&](auto t, const float* panel, int64_t tile_begin, int64_t tile_end, int64_t m0,
            int64_t tokens) {
            panel_rows<E, Rows, t()>(p, rows, panel, tile_begin, tile_end, m0, tokens);
        });
}

}  // namespace
}  // namespace prunekern
