// Small floating-point formats: decoding to double, encoding from double with one rounding.
//
//   f16  s eeeee mmmmmmmmmm      bf16 s eeeeeeee mmmmmmm      tf32 s eeeeeeee mmmmmmmmmm (0 x 13)
//   e4m3 s eeee mmm (no inf, NaN = all ones)                  e5m2 s eeeee mm
#pragma once
#include <algorithm>
#include <bit>
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace emu {

// The chip's NaN results are one pattern whatever the operands' payloads were (PTX ISA,
// "Floating-Point Instructions").
template <class T>
inline T canonical(T value) {
    if (!std::isnan(value)) return value;
    if constexpr (sizeof(T) == 4) {
        uint32_t bits = 0x7fffffff;
        std::memcpy(&value, &bits, 4);
    } else {
        uint64_t bits = 0x7fffffffffffffffull;
        std::memcpy(&value, &bits, 8);
    }
    return value;
}

enum class Round : uint8_t { kNearestEven, kZero, kDown, kUp, kNearestAway };

// The CPU's own rounding, for as long as this lives.
class RoundingMode {
  public:
    explicit RoundingMode(Round round) {
        std::fesetround(round == Round::kZero   ? FE_TOWARDZERO
                        : round == Round::kDown ? FE_DOWNWARD
                        : round == Round::kUp   ? FE_UPWARD
                                                : FE_TONEAREST);
    }
    ~RoundingMode() { std::fesetround(FE_TONEAREST); }
    RoundingMode(const RoundingMode&) = delete;
    RoundingMode& operator=(const RoundingMode&) = delete;
};

template <int kExponent, int kMantissa, bool kInfinity>
struct Format {
    static constexpr int kBias = (1 << (kExponent - 1)) - 1;
    static constexpr uint32_t kSign = 1u << (kExponent + kMantissa);
    static constexpr uint32_t kTop = (1u << kExponent) - 1;
    // The largest finite value's bits; without infinities only the all-ones pattern is taken, by
    // NaN.
    static constexpr uint32_t kLargest =
        kInfinity ? (kTop << kMantissa) - 1 : (kTop << kMantissa | ((1u << kMantissa) - 2));
    static constexpr uint32_t kNan = kSign - 1;
    static constexpr uint32_t kInfinityBits = kTop << kMantissa;

    // Of the subnormal numbers.
    static constexpr double kUnit = std::bit_cast<double>(uint64_t{1024 - kBias - kMantissa} << 52);

    static double decode(uint32_t bits) {
        uint32_t exponent = bits >> kMantissa & kTop, mantissa = bits & ((1u << kMantissa) - 1);
        double value;
        if (exponent == kTop && (kInfinity || mantissa == (1u << kMantissa) - 1)) {
            value = kInfinity && mantissa == 0 ? std::numeric_limits<double>::infinity()
                                               : std::numeric_limits<double>::quiet_NaN();
        } else if (exponent == 0) {
            value = mantissa * kUnit;
        } else {
            value = std::bit_cast<double>(uint64_t{exponent + 1023 - kBias} << 52 |
                                          uint64_t{mantissa} << (52 - kMantissa));
        }
        return bits & kSign ? -value : value;
    }

    // saturate: finite values beyond the largest, and infinities, become the largest.
    static uint32_t encode(double value, Round round = Round::kNearestEven, bool saturate = false) {
        if (std::isnan(value)) return kNan;
        uint32_t sign = std::signbit(value) ? kSign : 0;
        if (std::isinf(value))
            return sign | (saturate ? kLargest : kInfinity ? kInfinityBits : kNan);
        // The format's exponent field for this value, 1 and below for what its first binade or its
        // subnormals hold; then the significand's bits that lie below the format's unit are cut.
        auto wide = std::bit_cast<uint64_t>(std::fabs(value));
        if (!wide) return sign;
        int field = static_cast<int>(wide >> 52) - 1023 + kBias;
        uint64_t significand = (wide & ((1ull << 52) - 1)) | 1ull << 52;
        int cut = std::min(52 - kMantissa + std::max(1 - field, 0), 63);
        uint64_t kept = significand >> cut, rest = significand & ((1ull << cut) - 1);
        kept += rounds_up(round, sign, kept & 1, rest, 1ull << (cut - 1));
        // The leading bit counts one in the exponent's field, as does a carry out of the mantissa.
        uint64_t bits = kept + (static_cast<uint64_t>(std::max(field, 1) - 1) << kMantissa);
        if (bits <= kLargest) return sign | static_cast<uint32_t>(bits);
        bool toward_zero = round == Round::kZero || round == (sign ? Round::kUp : Round::kDown);
        return sign | (saturate || toward_zero ? kLargest : kInfinity ? kInfinityBits : kNan);
    }

  private:
    static bool rounds_up(Round round, bool negative, bool odd, uint64_t rest, uint64_t half) {
        switch (round) {
            case Round::kNearestEven: return rest > half || (rest == half && odd);
            case Round::kNearestAway: return rest >= half;
            case Round::kDown: return negative && rest;
            case Round::kUp: return !negative && rest;
            default: return false;
        }
    }
};
using Half = Format<5, 10, true>;
using Bfloat = Format<8, 7, true>;
using Tf32 = Format<8, 10, true>;  // without the 13 bits below
using E4m3 = Format<4, 3, false>;
using E5m2 = Format<5, 2, true>;

// a * b + c as a double rounded to odd, so that a second rounding to a short format is right.
inline double fused(double a, double b, double c) {
    double product = a * b;  // exact: at most 22 bits
    double sum = product + c;
    double back = sum - product, error = (product - (sum - back)) + (c - back);
    if (error != 0 && std::isfinite(sum)) {
        uint64_t bits;
        std::memcpy(&bits, &sum, 8);
        if (!(bits & 1)) {
            bits += (error > 0) == (sum > 0) ? 1 : -1;
            std::memcpy(&sum, &bits, 8);
        }
    }
    return sum;
}

// What the tensor core sees of an fp32 register given as tf32: the low 13 bits are ignored.
inline float tf32_seen(uint32_t bits) {
    bits &= ~0x1fffu;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

}  // namespace emu
