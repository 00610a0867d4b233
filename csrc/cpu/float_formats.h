// bf16 and fp16 to fp32 and back, one element at a time, in plain C++: round to nearest even, NaN
// stays NaN. The scalar kernels compute with these; the vector units have instructions.
#pragma once
#include <bit>
#include <cstdint>

#include "../kernels.h"

namespace prunekern {

struct ScalarF32 {
    using T = float;
    static float widen(T v) { return v; }
    static T narrow(float v) { return v; }
};

struct ScalarBF16 {
    using T = uint16_t;
    static float widen(T v) { return std::bit_cast<float>(static_cast<uint32_t>(v) << 16); }
    static T narrow(float v) {
        const uint32_t bits = std::bit_cast<uint32_t>(v);
        if (v != v) return static_cast<T>(bits >> 16 | 0x40);
        return static_cast<T>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
};

//   fp16: sign 1 | exponent 5 (bias 15) | fraction 10
struct ScalarF16 {
    using T = uint16_t;
    static float widen(T v) {
        const uint32_t sign = static_cast<uint32_t>(v & 0x8000) << 16;
        const uint32_t magnitude = v & 0x7fff;
        if (magnitude >= 0x7c00)  // infinity and NaN
            return std::bit_cast<float>(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
        // The exponent's bias is mended by a multiplication, which is exact, subnormals included.
        const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112F;
        return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(scaled));
    }
    static T narrow(float v) {
        const uint32_t bits = std::bit_cast<uint32_t>(v);
        const auto sign = static_cast<T>(bits >> 16 & 0x8000);
        const uint32_t magnitude = bits & 0x7fffffff;
        if (magnitude > 0x7f800000)
            return static_cast<T>(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
        if (magnitude >= 0x477ff000) return static_cast<T>(sign | 0x7c00);  // 65520 rounds to inf
        if (magnitude < 0x38800000) {
            // Subnormal: adding 0.5 moves the last kept bit to the last bit of the fraction.
            const float shifted = std::bit_cast<float>(magnitude) + 0.5F;
            return static_cast<T>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000));
        }
        const uint32_t rounded = magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1);
        return static_cast<T>(sign | rounded >> 13);
    }
};

// Calls f with the element type of `dtype`.
template <class F>
void with_dtype(DType dtype, F&& f) {
    switch (dtype) {
        case DType::kFloat32: return f(ScalarF32{});
        case DType::kBFloat16: return f(ScalarBF16{});
        case DType::kFloat16: return f(ScalarF16{});
    }
}

}  // namespace prunekern
