// The AVX-512 intrinsics that csrc/cpu uses, in plain C++, so that a machine without AVX-512 can
// run the AVX-512 kernels and catch a wrong shuffle. Written from the operation sections of the
// Intel Intrinsics Guide, lane by lane; slow and obvious.
//
// Included before everything else (-include): the real <immintrin.h> first, for its types and for
// the AVX2 intrinsics that kernels use beside, then each name is pointed here.
#pragma once
#include <immintrin.h>

#include <bit>
#include <cstdint>
#include <cstring>

#define __AVX512F__ 1

namespace portable {

// A register as an array of its lanes.
template <class Lane>
struct Lanes {
    Lane lane[64 / sizeof(Lane)];
    static constexpr int kCount = 64 / sizeof(Lane);
    Lane& operator[](int i) { return lane[i]; }
    Lane operator[](int i) const { return lane[i]; }
};
using F = Lanes<float>;
using W = Lanes<uint32_t>;
using H = Lanes<uint16_t>;

template <class To, class From>
To bits(const From& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}
template <class Register, class Lane, class Op>
Register make(Op op) {
    Lanes<Lane> out;
    for (int i = 0; i < Lanes<Lane>::kCount; ++i) out[i] = op(i);
    return bits<Register>(out);
}
template <class Op>
__m512 floats(Op op) {
    return make<__m512, float>(op);
}
template <class Op>
__m512i words(Op op) {
    return make<__m512i, uint32_t>(op);
}
template <class Op>
__m512i halves(Op op) {
    return make<__m512i, uint16_t>(op);
}
inline bool bit(uint64_t mask, int i) { return mask >> i & 1; }

// Memory.
inline __m512i load_si(const void* p) {
    return make<__m512i, uint8_t>([&](int i) { return static_cast<const uint8_t*>(p)[i]; });
}
inline void store_si(void* p, __m512i v) { std::memcpy(p, &v, 64); }
inline __m512 load_ps(const float* p) {
    return floats([&](int i) { return p[i]; });
}
inline void store_ps(float* p, __m512 v) { std::memcpy(p, &v, 64); }
inline __m512i maskz_loadu_epi16(__mmask32 mask, const void* p) {
    return halves([&](int i) -> uint16_t {
        uint16_t v = 0;  // lanes that are masked out are not read
        if (bit(mask, i)) std::memcpy(&v, static_cast<const char*>(p) + 2 * i, 2);
        return v;
    });
}
inline __m512 i32gather_ps(__m512i index, const float* p, int scale) {
    const auto n = bits<Lanes<int32_t>>(index);
    return floats([&](int i) {
        float v;
        std::memcpy(&v, reinterpret_cast<const char*>(p) + int64_t{n[i]} * scale, 4);
        return v;
    });
}

// Constants and casts.
inline __m512 setzero_ps() {
    return floats([](int) { return 0.0F; });
}
inline __m512i setzero_si() {
    return words([](int) { return 0U; });
}
inline __m512 set1_ps(float v) {
    return floats([&](int) { return v; });
}
inline __m512i set1_epi32(int v) {
    return words([&](int) { return static_cast<uint32_t>(v); });
}
template <class... V>
__m512i setr_epi32(V... v) {
    const uint32_t all[] = {static_cast<uint32_t>(v)...};
    return words([&](int i) { return all[i]; });
}
template <class... V>
__m512i set_epi16(V... v) {  // the last argument is lane 0
    const uint16_t all[] = {static_cast<uint16_t>(v)...};
    return halves([&](int i) { return all[31 - i]; });
}
inline __m512i broadcast_i32x4(__m128i v) {
    uint32_t four[4];
    std::memcpy(four, &v, 16);
    return words([&](int i) { return four[i % 4]; });
}
inline __m512 broadcast_f32x4(__m128 v) {
    float four[4];
    std::memcpy(four, &v, 16);
    return floats([&](int i) { return four[i % 4]; });
}
inline __m512 castsi_ps(__m512i v) { return bits<__m512>(v); }
inline __m512i castps_si(__m512 v) { return bits<__m512i>(v); }
inline float cvtss_f32(__m512 v) { return bits<F>(v)[0]; }

// Integer arithmetic.
#define PORTABLE_WORDS(name, expression)                 \
    inline __m512i name(__m512i a, __m512i b) {          \
        const auto x = bits<W>(a), y = bits<W>(b);       \
        return words([&](int i) { return expression; }); \
    }
PORTABLE_WORDS(add_epi32, x[i] + y[i])
PORTABLE_WORDS(sub_epi32, x[i] - y[i])
PORTABLE_WORDS(mullo_epi32, x[i] * y[i])
PORTABLE_WORDS(and_si, x[i] & y[i])
PORTABLE_WORDS(or_si, x[i] | y[i])
#undef PORTABLE_WORDS
inline __m512i srli_epi32(__m512i v, unsigned n) {
    const auto x = bits<W>(v);
    return words([&](int i) { return n > 31 ? 0 : x[i] >> n; });
}
inline __m512i slli_epi32(__m512i v, unsigned n) {
    const auto x = bits<W>(v);
    return words([&](int i) { return n > 31 ? 0 : x[i] << n; });
}
inline __m512i srl_epi32(__m512i v, __m128i n) {
    return srli_epi32(v, static_cast<unsigned>(_mm_cvtsi128_si32(n)));
}
inline __mmask16 cmplt_epi32_mask(__m512i a, __m512i b) {
    const auto x = bits<Lanes<int32_t>>(a), y = bits<Lanes<int32_t>>(b);
    unsigned mask = 0;
    for (int i = 0; i < 16; ++i) mask |= static_cast<unsigned>(x[i] < y[i]) << i;
    return static_cast<__mmask16>(mask);
}
inline __m512i mask_or_epi32(__m512i from, __mmask16 mask, __m512i a, __m512i b) {
    const auto f = bits<W>(from), x = bits<W>(a), y = bits<W>(b);
    return words([&](int i) { return bit(mask, i) ? x[i] | y[i] : f[i]; });
}
inline __m512i mask_blend_epi16(__mmask32 mask, __m512i a, __m512i b) {
    const auto x = bits<H>(a), y = bits<H>(b);
    return halves([&](int i) { return bit(mask, i) ? y[i] : x[i]; });
}

// Moves between lanes.
inline __m512i permutexvar_epi32(__m512i index, __m512i v) {
    const auto n = bits<W>(index), x = bits<W>(v);
    return words([&](int i) { return x[static_cast<int>(n[i] & 15)]; });
}
inline __m512i permutexvar_epi16(__m512i index, __m512i v) {
    const auto n = bits<H>(index), x = bits<H>(v);
    return halves([&](int i) { return x[n[i] & 31]; });
}
inline __m512 permutevar_ps(__m512 v, __m512i index) {  // within each 128 bits
    const auto x = bits<F>(v);
    const auto n = bits<W>(index);
    return floats([&](int i) { return x[(i & ~3) + static_cast<int>(n[i] & 3)]; });
}
inline __m512 maskz_mov_ps(__mmask16 mask, __m512 v) {
    const auto x = bits<F>(v);
    return floats([&](int i) { return bit(mask, i) ? x[i] : 0.0F; });
}
template <class Lane>
__m512i unpack(__m512i a, __m512i b, int half) {  // within each 128 bits: a, b, a, b of one half
    constexpr int kQuarter = Lanes<Lane>::kCount / 4;
    const auto x = bits<Lanes<Lane>>(a), y = bits<Lanes<Lane>>(b);
    return make<__m512i, Lane>([&](int i) {
        const int from = i / kQuarter * kQuarter + half * kQuarter / 2 + i % kQuarter / 2;
        return i % 2 ? y[from] : x[from];
    });
}
inline __m512i unpacklo_epi32(__m512i a, __m512i b) { return unpack<uint32_t>(a, b, 0); }
inline __m512i unpackhi_epi32(__m512i a, __m512i b) { return unpack<uint32_t>(a, b, 1); }
inline __m512i unpacklo_epi64(__m512i a, __m512i b) { return unpack<uint64_t>(a, b, 0); }
inline __m512i unpackhi_epi64(__m512i a, __m512i b) { return unpack<uint64_t>(a, b, 1); }
inline __m512i shuffle_i32x4(__m512i a, __m512i b, int which) {  // two quarters of a, two of b
    const auto x = bits<W>(a), y = bits<W>(b);
    return words([&](int i) {
        const int from = (which >> i / 4 * 2 & 3) * 4 + i % 4;
        return i < 8 ? x[from] : y[from];
    });
}
inline __m512i shuffle_epi8(__m512i v, __m512i index) {  // within each 128 bits
    const auto x = bits<Lanes<uint8_t>>(v), n = bits<Lanes<uint8_t>>(index);
    return make<__m512i, uint8_t>(
        [&](int i) -> uint8_t { return n[i] & 0x80 ? 0 : x[(i & ~15) + (n[i] & 15)]; });
}
template <class Lane>
Lanes<Lane> expand(uint64_t mask, const Lanes<Lane>& x) {
    Lanes<Lane> out{};
    for (int i = 0, next = 0; i < Lanes<Lane>::kCount; ++i)
        if (bit(mask, i)) out[i] = x[next++];
    return out;
}
inline __m512 maskz_expand_ps(__mmask16 mask, __m512 v) {
    return bits<__m512>(expand(mask, bits<F>(v)));
}
inline __m512i maskz_expand_epi16(__mmask32 mask, __m512i v) {
    return bits<__m512i>(expand(mask, bits<H>(v)));
}
inline __m512i maskz_compress_epi32(__mmask16 mask, __m512i v) {
    const auto x = bits<W>(v);
    W out{};
    for (int i = 0, next = 0; i < 16; ++i)
        if (bit(mask, i)) out[next++] = x[i];
    return bits<__m512i>(out);
}

// Floating point.
inline __m512 add_ps(__m512 a, __m512 b) {
    const auto x = bits<F>(a), y = bits<F>(b);
    return floats([&](int i) { return x[i] + y[i]; });
}
inline __m512 fmadd_ps(__m512 a, __m512 b, __m512 c) {
    const auto x = bits<F>(a), y = bits<F>(b), z = bits<F>(c);
    return floats([&](int i) { return __builtin_fmaf(x[i], y[i], z[i]); });
}
inline float reduce_add_ps(__m512 v) {
    auto x = bits<F>(v);
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) x[i] += x[i + half];
    return x[0];
}
inline __mmask16 cmp_ps_mask(__m512 a, __m512 b, int predicate) {
    const auto x = bits<F>(a), y = bits<F>(b);
    unsigned mask = 0;
    for (int i = 0; i < 16; ++i)
        mask |= static_cast<unsigned>(predicate == _CMP_UNORD_Q && (x[i] != x[i] || y[i] != y[i]))
                << i;
    return static_cast<__mmask16>(mask);
}
// Each word of a and b is two bf16: acc += a1 * b1, then acc += a0 * b0.
template <class Bf16>
__m512 dpbf16_ps(__m512 acc, Bf16 a, Bf16 b) {
    const auto sum = bits<F>(acc);
    const auto x = bits<H>(a), y = bits<H>(b);
    const auto widen = [](uint16_t v) {
        return std::bit_cast<float>(static_cast<uint32_t>(v) << 16);
    };
    return floats([&](int i) {
        const float odd = __builtin_fmaf(widen(x[2 * i + 1]), widen(y[2 * i + 1]), sum[i]);
        return __builtin_fmaf(widen(x[2 * i]), widen(y[2 * i]), odd);
    });
}

// Conversions.
inline __m512i cvtepu16_epi32(__m256i v) {
    uint16_t x[16];
    std::memcpy(x, &v, 32);
    return words([&](int i) { return uint32_t{x[i]}; });
}
inline __m512i cvtepi8_epi32(__m128i v) {
    int8_t x[16];
    std::memcpy(x, &v, 16);
    return words([&](int i) { return static_cast<uint32_t>(int32_t{x[i]}); });
}
inline __m512 cvtepi32_ps(__m512i v) {
    const auto x = bits<W>(v);
    return floats([&](int i) { return static_cast<float>(static_cast<int32_t>(x[i])); });
}
inline __m256i cvtneps_pbh(__m512 v) {  // round to nearest even; denormals count as zero
    const auto x = bits<W>(v);
    uint16_t out[16];
    for (int i = 0; i < 16; ++i) {
        const uint32_t magnitude = x[i] & 0x7fffffff;
        uint32_t rounded = x[i] + 0x7fff + (x[i] >> 16 & 1);
        if (magnitude > 0x7f800000) rounded = x[i] | 0x400000;
        if (magnitude < 0x00800000) rounded = x[i] & 0x80000000;
        out[i] = static_cast<uint16_t>(rounded >> 16);
    }
    __m256i result;
    std::memcpy(&result, out, 32);
    return result;
}
inline __m512 permutexvar_ps(__m512i index, __m512 v) {
    const auto x = bits<F>(v);
    const auto which = bits<W>(index);
    return floats([&](int i) { return x[which[i] & 15]; });
}
inline __m256i cvtepi32_epi16(__m512i v) {
    const auto x = bits<W>(v);
    uint16_t out[16];
    for (int i = 0; i < 16; ++i) out[i] = static_cast<uint16_t>(x[i]);
    __m256i result;
    std::memcpy(&result, out, 32);
    return result;
}
inline __m512 cvtph_ps(__m256i v) {
    float out[16];
    _mm256_storeu_ps(out, _mm256_cvtph_ps(_mm256_castsi256_si128(v)));
    _mm256_storeu_ps(out + 8, _mm256_cvtph_ps(_mm256_extracti128_si256(v, 1)));
    return load_ps(out);
}
inline __m256i cvtps_ph(__m512 v, int) {  // round to nearest even
    float x[16];
    store_ps(x, v);
    const __m128i low = _mm256_cvtps_ph(_mm256_loadu_ps(x), _MM_FROUND_TO_NEAREST_INT);
    const __m128i high = _mm256_cvtps_ph(_mm256_loadu_ps(x + 8), _MM_FROUND_TO_NEAREST_INT);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

}  // namespace portable

#define _mm512_load_si512 portable::load_si
#define _mm512_loadu_si512 portable::load_si
#define _mm512_store_si512 portable::store_si
#define _mm512_storeu_si512 portable::store_si
#define _mm512_load_ps portable::load_ps
#define _mm512_loadu_ps portable::load_ps
#define _mm512_store_ps portable::store_ps
#define _mm512_storeu_ps portable::store_ps
#define _mm512_maskz_loadu_epi16 portable::maskz_loadu_epi16
#undef _mm512_i32gather_ps
#define _mm512_i32gather_ps portable::i32gather_ps
#define _mm512_setzero_ps portable::setzero_ps
#define _mm512_setzero_si512 portable::setzero_si
#define _mm512_set1_ps portable::set1_ps
#define _mm512_set1_epi32 portable::set1_epi32
#undef _mm512_setr_epi32
#define _mm512_setr_epi32 portable::setr_epi32
#define _mm512_set_epi16 portable::set_epi16
#define _mm512_broadcast_i32x4 portable::broadcast_i32x4
#define _mm512_broadcast_f32x4 portable::broadcast_f32x4
#define _mm512_castsi512_ps portable::castsi_ps
#define _mm512_castps_si512 portable::castps_si
#define _mm512_cvtss_f32 portable::cvtss_f32
#define _mm512_add_epi32 portable::add_epi32
#define _mm512_sub_epi32 portable::sub_epi32
#define _mm512_mullo_epi32 portable::mullo_epi32
#define _mm512_and_si512 portable::and_si
#define _mm512_or_si512 portable::or_si
#define _mm512_srli_epi32 portable::srli_epi32
#define _mm512_slli_epi32 portable::slli_epi32
#define _mm512_srl_epi32 portable::srl_epi32
#define _mm512_cmplt_epi32_mask portable::cmplt_epi32_mask
#define _mm512_mask_or_epi32 portable::mask_or_epi32
#define _mm512_mask_blend_epi16 portable::mask_blend_epi16
#define _mm512_permutexvar_epi32 portable::permutexvar_epi32
#define _mm512_permutexvar_epi16 portable::permutexvar_epi16
#define _mm512_permutevar_ps portable::permutevar_ps
#define _mm512_unpacklo_epi32 portable::unpacklo_epi32
#define _mm512_unpackhi_epi32 portable::unpackhi_epi32
#define _mm512_unpacklo_epi64 portable::unpacklo_epi64
#define _mm512_unpackhi_epi64 portable::unpackhi_epi64
#undef _mm512_shuffle_i32x4
#define _mm512_shuffle_i32x4 portable::shuffle_i32x4
#define _mm512_shuffle_epi8 portable::shuffle_epi8
#define _mm512_maskz_mov_ps portable::maskz_mov_ps
#define _mm512_maskz_expand_ps portable::maskz_expand_ps
#define _mm512_maskz_expand_epi16 portable::maskz_expand_epi16
#define _mm512_maskz_compress_epi32 portable::maskz_compress_epi32
#define _mm512_add_ps portable::add_ps
#define _mm512_fmadd_ps portable::fmadd_ps
#define _mm512_reduce_add_ps portable::reduce_add_ps
#undef _mm512_cmp_ps_mask
#define _mm512_cmp_ps_mask portable::cmp_ps_mask
#define _mm512_dpbf16_ps portable::dpbf16_ps
#define _mm512_cvtepi8_epi32 portable::cvtepi8_epi32
#define _mm512_cvtepi32_ps portable::cvtepi32_ps
#define _mm512_cvtneps_pbh portable::cvtneps_pbh
#define _mm512_permutexvar_ps portable::permutexvar_ps
#define _mm512_cvtepu16_epi32 portable::cvtepu16_epi32
#define _mm512_cvtepi32_epi16 portable::cvtepi32_epi16
#define _mm512_cvtph_ps portable::cvtph_ps
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph portable::cvtps_ph
