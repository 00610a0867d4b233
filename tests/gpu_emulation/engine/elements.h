// The tensor cores' element types: 32 words (all lanes of a register, or 128 bytes of a tile) to
// floats, which hold each of these types exactly.
#pragma once
#include <array>
#include <bit>
#include <cstring>
#include <string_view>
#ifdef __F16C__
#include <immintrin.h>
#endif

#include "numbers.h"

namespace emu {

constexpr int kLanes = 32;
using Words = const uint32_t*;

template <class Stored>
std::array<Stored, kLanes * 4 / sizeof(Stored)> elements(Words words) {
    std::array<Stored, kLanes * 4 / sizeof(Stored)> out;
    std::memcpy(out.data(), words, sizeof out);
    return out;
}

inline void decode_half(Words words, float* out) {
    auto halves = elements<uint16_t>(words);
#ifdef __F16C__
    for (size_t i = 0; i < halves.size(); i += 8) {
        auto eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(halves.data() + i));
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(eight));
    }
#else
    for (size_t i = 0; i < halves.size(); ++i) out[i] = static_cast<float>(Half::decode(halves[i]));
#endif
}
inline void decode_bfloat(Words words, float* out) {
    auto halves = elements<uint16_t>(words);
    for (size_t i = 0; i < halves.size(); ++i)
        out[i] = std::bit_cast<float>(uint32_t{halves[i]} << 16);
}
inline void decode_tf32(Words words, float* out) {
    for (int l = 0; l < kLanes; ++l) out[l] = tf32_seen(words[l]);
}
template <class Integer>
void decode_integer(Words words, float* out) {
    auto bytes = elements<Integer>(words);
    for (size_t i = 0; i < bytes.size(); ++i) out[i] = bytes[i];
}
template <class Format>
void decode_fp8(Words words, float* out) {
    static const auto table = [] {
        std::array<float, 256> t;
        for (uint32_t i = 0; i < 256; ++i) t[i] = static_cast<float>(Format::decode(i));
        return t;
    }();
    auto bytes = elements<uint8_t>(words);
    for (size_t i = 0; i < bytes.size(); ++i) out[i] = table[bytes[i]];
}

// Both factors of a product are of one family.
enum class Family : uint8_t { kHalf, kBfloat, kTf32, kInteger, kFp8 };
struct Element {
    std::string_view name;
    Family family;
    int bits;
    void (*decode)(Words, float*);
};
constexpr Element kElements[] = {{"f16", Family::kHalf, 16, decode_half},
                                 {"bf16", Family::kBfloat, 16, decode_bfloat},
                                 {"tf32", Family::kTf32, 32, decode_tf32},
                                 {"s8", Family::kInteger, 8, decode_integer<int8_t>},
                                 {"u8", Family::kInteger, 8, decode_integer<uint8_t>},
                                 {"e4m3", Family::kFp8, 8, decode_fp8<E4m3>},
                                 {"e5m2", Family::kFp8, 8, decode_fp8<E5m2>}};

// Its place in kElements, or -1.
inline int element(std::string_view name) {
    for (size_t i = 0; i < std::size(kElements); ++i)
        if (kElements[i].name == name) return static_cast<int>(i);
    return -1;
}

}  // namespace emu
