// bitmask_linear for AVX2 (8 lanes) and AVX-512 (16 lanes), any dtype, fp32 arithmetic.
//
// Few tokens: lanes are inputs, see bitmask_decode.h for the layout. Many tokens: lanes are tokens,
// see token_panel.h; the bits of a chunk are compressed to the positions of the kept weights, whose
// values are already in that order.
#pragma once
#include <algorithm>
#include <array>

#include "bitmask_decode.h"
#include "scratch.h"
#include "simd.h"
#include "token_panel.h"

namespace prunekern {
namespace {
namespace bitmask {

#ifdef __AVX512F__

template <class E>
PK_INLINE Vec expand_lanes(__mmask16 bits, const typename E::T* values) {
    return _mm512_maskz_expand_ps(bits, E::load_lanes(values));
}
// Lanes whose bit is set of base + lane * step, moved together.
PK_INLINE IVec compress_lines(__mmask16 bits, IVec lines) {
    return _mm512_maskz_compress_epi32(bits, lines);
}
using LaneBits = uint16_t;

#else

// Row `bits`: for each of 8 lanes the index of its value, or kNone.
constexpr uint8_t kNone = 0x80;
constexpr auto kExpandTable = [] {
    std::array<std::array<uint8_t, 8>, 256> table{};
    for (int bits = 0; bits < 256; ++bits)
        for (int lane = 0, next = 0; lane < 8; ++lane)
            table[bits][lane] = bits >> lane & 1 ? static_cast<uint8_t>(next++) : kNone;
    return table;
}();
// The same for 16-bit values that end up in the high halves of 32-bit lanes: bf16 as fp32, or fp16
// to be converted. For vpshufb, which writes zero where the index has kNone; both 128-bit halves
// see all eight values.
alignas(64) constexpr auto kExpandHalvesTable = [] {
    std::array<std::array<uint8_t, 32>, 256> table{};
    for (int bits = 0; bits < 256; ++bits)
        for (int lane = 0; lane < 8; ++lane) {
            const uint8_t index = kExpandTable[bits][lane];
            const bool kept = index != kNone;
            table[bits][4 * lane] = table[bits][4 * lane + 1] = kNone;
            table[bits][4 * lane + 2] = kept ? static_cast<uint8_t>(2 * index) : kNone;
            table[bits][4 * lane + 3] = kept ? static_cast<uint8_t>(2 * index + 1) : kNone;
        }
    return table;
}();
// Row `bits`: the lanes whose bit is set, moved together.
constexpr auto kCompressTable = [] {
    std::array<std::array<uint8_t, 8>, 256> table{};
    for (int bits = 0; bits < 256; ++bits)
        for (int lane = 0, next = 0; lane < 8; ++lane)
            if (bits >> lane & 1) table[bits][next++] = static_cast<uint8_t>(lane);
    return table;
}();

PK_INLINE __m128i load_row(const std::array<uint8_t, 8>& row) {
    return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(row.data()));
}

template <class E>
PK_INLINE Vec expand_lanes(uint8_t bits, const typename E::T* values) {
    if constexpr (sizeof(typename E::T) == 4) {
        const IVec index = _mm256_cvtepi8_epi32(load_row(kExpandTable[bits]));
        const Vec moved = _mm256_permutevar8x32_ps(load(values), index);
        return _mm256_blendv_ps(moved, zero(), as_float(index));  // kNone has the sign bit
    } else {
        const IVec index = load_words(kExpandHalvesTable[bits].data());
        const IVec halves =
            _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load_halves(values)), index);
        return E::from_high_halves(halves);
    }
}
PK_INLINE IVec compress_lines(uint8_t bits, IVec lines) {
    return _mm256_permutevar8x32_epi32(lines, _mm256_cvtepu8_epi32(load_row(kCompressTable[bits])));
}
using LaneBits = uint8_t;

#endif

// What bitmask_decode.h asks for.
template <class E>
struct FloatLanes {
    using Elem = typename E::T;
    using X = float;
    using Weights = Vec;
    using Bits = LaneBits;
    static constexpr int kInputs = kLanes;
    static constexpr int kMaxTokens = 8;
    static constexpr int kMaxSums = kLanes == 16 ? 24 : 8;

    static PK_INLINE Vec expand(Bits bits, const Elem* values) {
        return expand_lanes<E>(bits, values);
    }
    static PK_INLINE Vec load(const float* x) { return prunekern::load(x); }
    static PK_INLINE Vec multiply_add(Vec w, Vec x, Vec acc) { return fmadd(w, x, acc); }
};

// What token_panel.h asks for.
template <class E>
struct PanelRows {
    static constexpr int kRows = kTileRows;
    static constexpr int kInputMultiple = kChunkInputs;
    static constexpr int kTermStride = 1;
    static constexpr int kInputsPerTerm = 1;

    const Problem& p;
    const BitmaskWeight& w;
    double density;

    using Cursor = int64_t;  // the next value
    Cursor start(int64_t tile) const { return w.offsets[tile]; }

    void expand(int64_t tile, Cursor& next, int64_t k_begin, int64_t k_end, uint32_t stride_bytes,
                Terms<PanelRows>& terms) const {
        const auto* values = static_cast<const typename E::T*>(w.values) + next;
        const auto* first = values;
        const int64_t chunks = ceil_div(p.K, kChunkInputs);
        const uint64_t* masks = static_cast<const uint64_t*>(w.bitmask) +
                                (tile * chunks + k_begin / kChunkInputs) * kTileRows;
        for (int& n : terms.counts) n = 0;
        const IVec step = broadcast_word(kLanes * stride_bytes);
        IVec chunk_lines = mul_words(lane_numbers(), broadcast_word(stride_bytes));
        for (int64_t k = k_begin; k < k_end; k += kChunkInputs, masks += kTileRows) {
            IVec lines = chunk_lines;
            for (int r = 0; r < kTileRows; ++r) {
                float* weights = terms.weights + r * Terms<PanelRows>::kRowStride;
                uint32_t* offsets = terms.offsets + r * Terms<PanelRows>::kRowStride;
                int n = terms.counts[r];
                lines = chunk_lines;
                for (int j = 0; j < kChunkInputs; j += kLanes) {
                    const auto bits = static_cast<LaneBits>(masks[r] >> j);
                    store(weights + n, E::load_lanes(values));
                    store_words(offsets + n, compress_lines(bits, lines));
                    lines = add_words(lines, step);
                    const auto kept = static_cast<int>(popcount(bits));
                    n += kept;
                    values += kept;
                }
                terms.counts[r] = n;
            }
            chunk_lines = lines;
        }
        next += values - first;
        prefetch_next(values, (values - first) * static_cast<int64_t>(sizeof(*values)));
        prefetch_next(masks, ceil_div(k_end - k_begin, kChunkInputs) * kTileRows * 8);
    }
};

// Up to here expanding and multiplying the zeros too is quicker than driving by index; measured.
inline int64_t decode_tokens(double density) { return density < 0.2 ? 4 : 8; }

template <class E>
void linear(const Problem& p, const BitmaskWeight& w) {
    const double density = static_cast<double>(w.offsets[ceil_div(p.N, kTileRows)]) /
                           (static_cast<double>(p.N) * static_cast<double>(p.K));
    if (p.M > decode_tokens(density)) return panel_linear<E>(p, PanelRows<E>{p, w, density});
    const int64_t stride = token_stride<float>(round_up(p.K, kChunkInputs));
    Scratch<float> x(p.M * stride);
    widen_tokens<E>(p, x.get(), stride);
    decode<FloatLanes<E>, E>(p, w, x.get(), stride);
}

inline void linear_any(const Problem& p, const BitmaskWeight& w) {
    switch (p.dtype) {
        case DType::kFloat32: return linear<F32>(p, w);
        case DType::kBFloat16: return linear<BF16>(p, w);
        case DType::kFloat16: return linear<F16>(p, w);
    }
}

}  // namespace bitmask
}  // namespace
}  // namespace prunekern
