// One vocabulary for AVX2 (8 lanes) and AVX-512 (16 lanes), so that a kernel is written once.
//
// Each translation unit is compiled with its own ISA flags; everything here and in the headers that
// build on it lives in an anonymous namespace, because the linker would otherwise merge an inline
// function of the AVX-512 unit into the AVX2 one.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "../kernels.h"

#define PK_INLINE inline __attribute__((always_inline))

namespace prunekern {
namespace {

#ifdef __AVX512F__
constexpr int kLanes = 16;
using Vec = __m512;
using IVec = __m512i;
using Halves = __m256i;  // kLanes 16-bit elements

PK_INLINE Vec zero() { return _mm512_setzero_ps(); }
PK_INLINE Vec broadcast(float v) { return _mm512_set1_ps(v); }
PK_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
PK_INLINE void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
PK_INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
PK_INLINE Vec fmadd(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
PK_INLINE float reduce_add(Vec v) { return _mm512_reduce_add_ps(v); }
PK_INLINE float first_lane(Vec v) { return _mm512_cvtss_f32(v); }
// Four floats repeated in every 128-bit quarter, and one of the four chosen for each lane by the
// two low bits of that lane's word (the rest of the word is ignored).
PK_INLINE Vec broadcast_quad(const float* p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
PK_INLINE Vec select_in_quad(Vec quad, IVec which) { return _mm512_permutevar_ps(quad, which); }

PK_INLINE IVec load_words(const void* p) { return _mm512_loadu_si512(p); }
PK_INLINE void store_words(void* p, IVec v) { _mm512_storeu_si512(p, v); }
PK_INLINE IVec broadcast_word(uint32_t v) { return _mm512_set1_epi32(static_cast<int>(v)); }
PK_INLINE IVec add_words(IVec a, IVec b) { return _mm512_add_epi32(a, b); }
PK_INLINE IVec lane_numbers() {
    return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
PK_INLINE IVec sub_words(IVec a, IVec b) { return _mm512_sub_epi32(a, b); }
PK_INLINE IVec mul_words(IVec a, IVec b) { return _mm512_mullo_epi32(a, b); }
// How many lanes of a are below b, both signed.
PK_INLINE int count_less(IVec a, IVec b) { return _mm_popcnt_u32(_mm512_cmplt_epi32_mask(a, b)); }
PK_INLINE Vec gather(const float* p, IVec index) { return _mm512_i32gather_ps(index, p, 4); }
// v in the first n lanes, 0 < n <= kLanes, zero in the others.
PK_INLINE Vec first_lanes(Vec v, int64_t n) {
    return _mm512_maskz_mov_ps(static_cast<__mmask16>(0xffffU >> (kLanes - n)), v);
}
PK_INLINE IVec shift_right(IVec v, int bits) {
    return _mm512_srl_epi32(v, _mm_cvtsi32_si128(bits));
}
PK_INLINE Vec as_float(IVec v) { return _mm512_castsi512_ps(v); }
PK_INLINE IVec as_words(Vec v) { return _mm512_castps_si512(v); }
PK_INLINE Vec low_bf16(IVec v) { return as_float(_mm512_slli_epi32(v, 16)); }
PK_INLINE Vec high_bf16(IVec v) {
    return as_float(_mm512_and_si512(v, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
}
PK_INLINE Halves load_halves(const uint16_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
PK_INLINE IVec widen_u16(Halves v) { return _mm512_cvtepu16_epi32(v); }
PK_INLINE Vec widen_f16(Halves v) { return _mm512_cvtph_ps(v); }
PK_INLINE Vec widen_i8(const uint8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}
// Bits 4 i .. 4 i + 3 of each word, two's complement.
PK_INLINE Vec nibble_to_float(IVec words, int i) {
    alignas(64) static constexpr float kValues[16] = {0,  1,  2,  3,  4,  5,  6,  7,
                                                      -8, -7, -6, -5, -4, -3, -2, -1};
    return _mm512_permutexvar_ps(shift_right(words, 4 * i), load(kValues));
}
PK_INLINE Halves high_halves(IVec v) { return _mm512_cvtepi32_epi16(_mm512_srli_epi32(v, 16)); }
PK_INLINE void store_f16(uint16_t* p, Vec v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
// Round to nearest even by integer arithmetic, as torch does; NaN keeps its sign and turns quiet.
PK_INLINE void store_bf16(uint16_t* p, Vec v) {
    const IVec bits = as_words(v);
    const IVec lsb = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    IVec rounded = _mm512_add_epi32(bits, _mm512_add_epi32(lsb, _mm512_set1_epi32(0x7fff)));
    rounded = _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), bits,
                                   _mm512_set1_epi32(0x00400000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
#else
constexpr int kLanes = 8;
using Vec = __m256;
using IVec = __m256i;
using Halves = __m128i;

PK_INLINE Vec zero() { return _mm256_setzero_ps(); }
PK_INLINE Vec broadcast(float v) { return _mm256_set1_ps(v); }
PK_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
PK_INLINE void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
PK_INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
PK_INLINE Vec fmadd(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
PK_INLINE float reduce_add(Vec v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
PK_INLINE float first_lane(Vec v) { return _mm256_cvtss_f32(v); }
PK_INLINE Vec broadcast_quad(const float* p) {
    return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
}
PK_INLINE Vec select_in_quad(Vec quad, IVec which) { return _mm256_permutevar_ps(quad, which); }

PK_INLINE IVec load_words(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
PK_INLINE void store_words(void* p, IVec v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
PK_INLINE IVec broadcast_word(uint32_t v) { return _mm256_set1_epi32(static_cast<int>(v)); }
PK_INLINE IVec add_words(IVec a, IVec b) { return _mm256_add_epi32(a, b); }
PK_INLINE IVec lane_numbers() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
PK_INLINE IVec sub_words(IVec a, IVec b) { return _mm256_sub_epi32(a, b); }
PK_INLINE IVec mul_words(IVec a, IVec b) { return _mm256_mullo_epi32(a, b); }
PK_INLINE int count_less(IVec a, IVec b) {
    const Vec less = _mm256_castsi256_ps(_mm256_cmpgt_epi32(b, a));
    return _mm_popcnt_u32(static_cast<unsigned>(_mm256_movemask_ps(less)));
}
PK_INLINE Vec gather(const float* p, IVec index) { return _mm256_i32gather_ps(p, index, 4); }
PK_INLINE Vec first_lanes(Vec v, int64_t n) {
    const IVec inside = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane_numbers());
    return _mm256_and_ps(v, _mm256_castsi256_ps(inside));
}
PK_INLINE IVec shift_right(IVec v, int bits) {
    return _mm256_srl_epi32(v, _mm_cvtsi32_si128(bits));
}
PK_INLINE Vec as_float(IVec v) { return _mm256_castsi256_ps(v); }
PK_INLINE IVec as_words(Vec v) { return _mm256_castps_si256(v); }
PK_INLINE Vec low_bf16(IVec v) { return as_float(_mm256_slli_epi32(v, 16)); }
PK_INLINE Vec high_bf16(IVec v) {
    return as_float(_mm256_and_si256(v, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
}
PK_INLINE Halves load_halves(const uint16_t* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
PK_INLINE IVec widen_u16(Halves v) { return _mm256_cvtepu16_epi32(v); }
PK_INLINE Vec widen_f16(Halves v) { return _mm256_cvtph_ps(v); }
PK_INLINE Vec widen_i8(const uint8_t* p) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}
PK_INLINE Vec nibble_to_float(IVec words, int i) {
    const IVec high = _mm256_sll_epi32(words, _mm_cvtsi32_si128(28 - 4 * i));
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(high, 28));
}
PK_INLINE Halves high_halves(IVec v) {
    const IVec low = _mm256_srli_epi32(v, 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
}
PK_INLINE void store_f16(uint16_t* p, Vec v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
PK_INLINE void store_bf16(uint16_t* p, Vec v) {
    const IVec bits = as_words(v);
    const IVec lsb = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    IVec rounded = _mm256_add_epi32(bits, _mm256_add_epi32(lsb, _mm256_set1_epi32(0x7fff)));
    const IVec quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
    rounded = as_words(
        _mm256_blendv_ps(as_float(rounded), as_float(quiet), _mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
    rounded = _mm256_srli_epi32(rounded, 16);
    _mm_storeu_si128(
        reinterpret_cast<__m128i*>(p),
        _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1)));
}
#endif

// The three dtypes: how kLanes elements come in and go out.
struct F32 {
    using T = float;
    static PK_INLINE Vec load_lanes(const T* p) { return load(p); }
    static PK_INLINE void store_lanes(T* p, Vec v) { store(p, v); }
};
struct BF16 {
    using T = uint16_t;
    static PK_INLINE Vec widen(Halves v) { return low_bf16(widen_u16(v)); }
    static PK_INLINE Vec from_high_halves(IVec v) { return as_float(v); }
    static PK_INLINE Vec load_lanes(const T* p) { return widen(load_halves(p)); }
    static PK_INLINE void store_lanes(T* p, Vec v) { store_bf16(p, v); }
};
struct F16 {
    using T = uint16_t;
    static PK_INLINE Vec widen(Halves v) { return widen_f16(v); }
    static PK_INLINE Vec from_high_halves(IVec v) { return widen_f16(high_halves(v)); }
    static PK_INLINE Vec load_lanes(const T* p) { return widen(load_halves(p)); }
    static PK_INLINE void store_lanes(T* p, Vec v) { store_f16(p, v); }
};

// As load_lanes and store_lanes for the first n of the lanes; the others read as zero.
template <class E>
PK_INLINE Vec load_some(const typename E::T* p, int64_t n) {
    if (n >= kLanes) return E::load_lanes(p);
    typename E::T tmp[kLanes] = {};
    std::memcpy(tmp, p, static_cast<size_t>(n) * sizeof(tmp[0]));
    return E::load_lanes(tmp);
}
template <class E>
PK_INLINE void store_some(typename E::T* p, Vec v, int64_t n) {
    if (n >= kLanes) return E::store_lanes(p, v);
    typename E::T tmp[kLanes];
    E::store_lanes(tmp, v);
    std::memcpy(p, tmp, static_cast<size_t>(n) * sizeof(tmp[0]));
}

template <class E>
PK_INLINE float load_one(const typename E::T* p) {
    return first_lane(load_some<E>(p, 1));
}
template <class E>
PK_INLINE void store_one(typename E::T* p, float v) {
    store_some<E>(p, broadcast(v), 1);
}

PK_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

// Asks for the `bytes` from p on, which the next visit to this row or tile will read.
PK_INLINE void prefetch_next(const void* p, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64)
        _mm_prefetch(static_cast<const char*>(p) + i, _MM_HINT_T1);
}

// How far ahead of the multiplication a stream of weights is asked for. Measured: 1 to 2 KB is
// worth up to 2.4x from DRAM, and costs nothing in cache.
constexpr int64_t kPrefetchBytes = 2048;

}  // namespace
}  // namespace prunekern
