// x as bf16 pairs with tokens in lanes, for AVX512-BF16 kernels: a word holds inputs 2i and 2i+1 of
// one token, which is what vdpbf16ps multiplies and adds in one go.
//
//   panel[i][token]   i = 0 .. K/2 - 1     lane = token
#pragma once
#include <algorithm>

#include "panels.h"
#include "scratch.h"
#include "simd.h"

namespace prunekern {
namespace {

PK_INLINE __m512bh as_bf16(__m512i v) { return reinterpret_cast<__m512bh>(v); }
PK_INLINE __m512 dot_pairs(__m512 acc, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(acc, as_bf16(a), as_bf16(b));
}

// Inputs [k_begin, k_end) of `tokens` tokens as pairs, panel[(k - k_begin) / 2][width], zero beyond
// both ends. k_begin is even, k_end a multiple of 32 from it.
inline void transpose_pairs(const uint16_t* x, int64_t K, int64_t tokens, int64_t k_begin,
                            int64_t k_end, uint32_t* panel, int64_t width) {
    alignas(64) uint32_t block[16][16];
    for (int64_t k = k_begin; k < k_end; k += 32) {
        const int64_t valid = std::clamp<int64_t>(K - k, 0, 32);
        const __mmask32 mask = valid == 32 ? 0xffffffffU : (1U << valid) - 1;
        for (int64_t t = 0; t < width; t += 16) {
            for (int64_t i = 0; i < 16; ++i) {
                const __m512i row = t + i < tokens
                                        ? _mm512_maskz_loadu_epi16(mask, x + (t + i) * K + k)
                                        : _mm512_setzero_si512();
                _mm512_store_si512(block[i], row);
            }
            for (int64_t j = 0; j < 16; ++j)
                for (int64_t i = 0; i < 16; ++i)
                    panel[((k - k_begin) / 2 + j) * width + t + i] = block[i][j];
        }
    }
}

// As for_each_panel, with panels of pairs; padded_K is a multiple of 32.
template <int kMaxVecs, class Body>
void for_each_pair_panel(const Problem& p, int64_t padded_K, int64_t tile_rows, Body&& body) {
    for_each_panel<kMaxVecs, uint32_t>(
        p, padded_K / 2, tile_rows,
        [&](int64_t m0, int64_t tokens, int64_t line_begin, int64_t line_end, uint32_t* out,
            int64_t width) {
            transpose_pairs(static_cast<const uint16_t*>(p.x) + m0 * p.K, p.K, tokens,
                            2 * line_begin, 2 * line_end, out, width);
        },
        std::forward<Body>(body));
}

// x [M, K] padded with zeros to [M, stride], bf16.
inline void pad_tokens(const Problem& p, uint16_t* out, int64_t stride) {
    for (int64_t m = 0; m < p.M; ++m) {
        std::copy_n(static_cast<const uint16_t*>(p.x) + m * p.K, p.K, out + m * stride);
        std::fill_n(out + m * stride + p.K, stride - p.K, uint16_t{0});
    }
}

}  // namespace
}  // namespace prunekern
