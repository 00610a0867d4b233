// Lanes are tokens: x comes transposed in panels, sums leave transposed back. What the kernels for
// many tokens have in common, whatever they multiply in between.
//
//   panel[line][token]   a 32-bit word a token, T vectors of tokens wide; a line is one input as
//                        fp32 (token_panel.h) or two neighbouring ones as bf16 (bf16_pairs.h)
//
//   sums[row][token]     fp32, kRowBlock rows at a time: they stay in L2 while K advances
#pragma once
#include <algorithm>

#include "scratch.h"
#include "simd.h"

namespace prunekern {
namespace {

constexpr int64_t kRowBlock = 256;
constexpr int64_t kTokenChunk = 512;  // tokens transposed at a time: bounds the scratch

// For each panel and each range of row tiles body(T, panel, tile_begin, tile_end, m0, tokens),
// where T is a std::integral_constant up to kMaxVecs and the panel holds tokens m0 .. m0 + tokens.
// transpose(m0, tokens, line_begin, line_end, out, width) fills a slice of one panel.
template <int kMaxVecs, class Word, class Transpose, class Body>
void for_each_panel(const Problem& p, int64_t lines, int64_t tile_rows, Transpose&& transpose,
                    Body&& body) {
    const int64_t tiles = ceil_div(p.N, tile_rows);
    const int64_t chunk_vecs = ceil_div(std::min(p.M, kTokenChunk), kLanes);
    Scratch<Word> panels(lines * chunk_vecs * kLanes);

    for (int64_t m = 0; m < p.M; m += kTokenChunk) {
        const int64_t tokens = std::min(kTokenChunk, p.M - m);
        const int64_t vecs = ceil_div(tokens, kLanes);
        const int64_t count = ceil_div(vecs, kMaxVecs);
        // Panels of equal width, so that none is a narrow rest.
        const auto first_vec = [&](int64_t i) { return i * vecs / count; };
        const auto tokens_from = [&](int64_t v0, int64_t v1) {
            return std::min(tokens - v0 * kLanes, (v1 - v0) * kLanes);
        };

        constexpr int64_t kSlice = 64;  // lines transposed as one task
        const int64_t slices = ceil_div(lines, kSlice);
        parallel_for(p, count * slices, 4, [&](int64_t begin, int64_t end) {
            for (int64_t task = begin; task < end; ++task) {
                const int64_t v0 = first_vec(task / slices), v1 = first_vec(task / slices + 1);
                const int64_t line = task % slices * kSlice;
                const int64_t width = (v1 - v0) * kLanes;
                transpose(m + v0 * kLanes, tokens_from(v0, v1), line,
                          std::min(line + kSlice, lines),
                          panels.get() + v0 * kLanes * lines + line * width, width);
            }
        });
        parallel_for(p, tiles, kWeightsPerTask / (tile_rows * p.K), [&](int64_t b, int64_t e) {
            for (int64_t i = 0; i < count; ++i) {
                const int64_t v0 = first_vec(i), v1 = first_vec(i + 1);
                with_constant<kMaxVecs>(static_cast<int>(v1 - v0), [&](auto t) {
                    body(t, panels.get() + v0 * kLanes * lines, b, e, m + v0 * kLanes,
                         tokens_from(v0, v1));
                });
            }
        });
    }
}

// sums[rows][width] (tokens in lanes) to y[tokens][rows], with bias.
template <class E>
void write_sums(const Problem& p, const float* sums, int64_t width, int64_t n0, int64_t rows,
                int64_t m0, int64_t tokens) {
    using Elem = typename E::T;
    alignas(64) float column[kLanes][kLanes];
    for (int64_t n = 0; n < rows; n += kLanes) {
        const int64_t some = std::min<int64_t>(kLanes, rows - n);
        const Vec bias =
            p.bias ? load_some<E>(static_cast<const Elem*>(p.bias) + n0 + n, some) : zero();
        for (int64_t t = 0; t < tokens; t += kLanes) {
            const int64_t count = std::min<int64_t>(kLanes, tokens - t);
            for (int64_t r = 0; r < some; ++r)
                for (int64_t i = 0; i < kLanes; ++i) column[i][r] = sums[(n + r) * width + t + i];
            for (int64_t i = 0; i < count; ++i)
                store_some<E>(static_cast<Elem*>(p.y) + (m0 + t + i) * p.N + n0 + n,
                              add(load(column[i]), bias), some);
        }
    }
}

}  // namespace
}  // namespace prunekern
