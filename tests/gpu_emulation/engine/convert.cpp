// cvt: between integers and floats of all widths, with rounding, saturation and the packed forms.
#include <algorithm>

#include "machine.h"
#include "numbers.h"

namespace emu {
namespace {

enum Type : int32_t {
    kU8,
    kU16,
    kU32,
    kU64,
    kS8,
    kS16,
    kS32,
    kS64,
    kF16,
    kBf16,
    kF32,
    kF64,
    kTf32,
    kE4m3,
    kE5m2,
    kNone
};

Type type_of(std::string_view t) {
    static const std::pair<std::string_view, Type> names[] = {
        {"u8", kU8},   {"u16", kU16}, {"u32", kU32},  {"u64", kU64}, {"s8", kS8},
        {"s16", kS16}, {"s32", kS32}, {"s64", kS64},  {"f16", kF16}, {"bf16", kBf16},
        {"f32", kF32}, {"f64", kF64}, {"tf32", kTf32}};
    for (auto [name, type] : names)
        if (t == name) return type;
    return kNone;
}
bool is_integer(int t) { return t <= kS64; }
bool is_signed(int t) { return t >= kS8 && t <= kS64; }
int width(int t) { return t <= kS64 ? 8 << (t & 3) : t <= kBf16 ? 16 : t == kF64 ? 64 : 32; }

int64_t extend(uint64_t bits, int type) {
    int shift = 64 - width(type);
    return is_signed(type) ? static_cast<int64_t>(bits << shift) >> shift
                           : static_cast<int64_t>(bits << shift >> shift);
}

template <class T>
T round_integral(T value, Round round) {
    switch (round) {
        case Round::kNearestEven: return std::nearbyint(value);
        case Round::kZero: return std::trunc(value);
        case Round::kDown: return std::floor(value);
        default: return std::ceil(value);
    }
}

double decode(uint64_t bits, int type) {
    if (type == kF16) return Half::decode(static_cast<uint32_t>(bits));
    if (type == kBf16) return Bfloat::decode(static_cast<uint32_t>(bits));
    if (type == kF64) return from_storage<double>(bits);
    return from_storage<float>(static_cast<uint32_t>(bits));
}

// The CPU's own rounding of a double (or of a 64-bit integer) to float, in the mode asked for.
template <class T>
float to_float(T value, Round round) {
    volatile T in = value;
    int mode = round == Round::kZero   ? FE_TOWARDZERO
               : round == Round::kDown ? FE_DOWNWARD
               : round == Round::kUp   ? FE_UPWARD
                                       : FE_TONEAREST;
    if (mode == FE_TONEAREST) return static_cast<float>(in);
    std::fesetround(mode);
    volatile float out = static_cast<float>(in);
    std::fesetround(FE_TONEAREST);
    return out;
}

uint64_t to_integer(double value, int type, Round round) {
    if (std::isnan(value)) return width(type) == 64 ? 1ull << 63 : 0;
    value = round_integral(value, round);
    int bits = width(type);
    double low = is_signed(type) ? -std::ldexp(1.0, bits - 1) : 0.0,
           high = std::ldexp(1.0, is_signed(type) ? bits - 1 : bits);
    uint64_t all = bits == 64 ? ~0ull : (1ull << bits) - 1;
    if (value >= high) return is_signed(type) ? all >> 1 : all;
    if (value < low) return is_signed(type) ? 1ull << (bits - 1) : 0;
    return (value < 0 ? static_cast<uint64_t>(static_cast<int64_t>(value))
                      : static_cast<uint64_t>(value)) &
           all;
}

// mode: destination, source, rounding, saturate, relu, round to an integral value
Step cvt(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    int to = in.mode[0], from = in.mode[1];
    auto round = static_cast<Round>(in.mode[2]);
    for (int l = 0; l < 32; ++l) {
        if (!(mask >> l & 1)) continue;
        uint64_t bits = lane_bits(w, in.ops[1], l), out;
        if (is_integer(from) && is_integer(to)) {
            int64_t value = extend(bits, from);
            if (in.mode[3]) {
                bool negative = is_signed(from) && value < 0;
                uint64_t top = ~0ull >> (64 - width(to) + is_signed(to));
                if (!negative && static_cast<uint64_t>(value) > top)
                    value = static_cast<int64_t>(top);
                if (negative && !is_signed(to)) value = 0;
                if (negative && is_signed(to))
                    value = std::max(value, -static_cast<int64_t>(top) - 1);
            }
            // a destination register wider than its type takes the extended value
            out = static_cast<uint64_t>(extend(static_cast<uint64_t>(value), to));
        } else if (is_integer(from)) {
            int64_t value = extend(bits, from);
            bool big = from == kU64;
            if (to == kF32)
                out = to_storage(big ? to_float(static_cast<uint64_t>(value), round)
                                     : to_float(value, round));
            else if (to == kF64)
                out = to_storage(big ? static_cast<double>(static_cast<uint64_t>(value))
                                     : static_cast<double>(value));
            else {
                double wide = big ? static_cast<double>(static_cast<uint64_t>(value))
                                  : static_cast<double>(value);
                out = to == kF16 ? Half::encode(wide, round) : Bfloat::encode(wide, round);
            }
        } else {
            double value = decode(bits, from);
            if (is_integer(to)) {
                out = static_cast<uint64_t>(extend(to_integer(value, to, round), to));
            } else {
                if (in.mode[5]) value = round_integral(value, round);
                if (in.mode[3]) value = std::isnan(value) ? 0 : std::clamp(value, 0.0, 1.0);
                if (in.mode[4] && !(value > 0) && !std::isnan(value)) value = 0;
                if (to == kF16)
                    out = Half::encode(value, round);
                else if (to == kBf16)
                    out = Bfloat::encode(value, round);
                else if (to == kF32)
                    out = to_storage(canonical(to_float(value, round)));
                else if (to == kTf32)
                    out = to_storage(tf32_round(static_cast<float>(value)));
                else
                    out = to_storage(canonical(value));
            }
        }
        set_lane(w, in.ops[0], l, out, poisoned(w, in.ops[1]) >> l & 1);
    }
    return Step::kNext;
}

// cvt.rn.{f16x2,bf16x2}.f32 d, a, b: a goes to the upper half. mode: bf16?, rounding, relu,
// saturate to finite
Step cvt_pair(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    auto round = static_cast<Round>(in.mode[1]);
    auto *a = source<float>(w, in.ops[1]), *b = source<float>(w, in.ops[2]);
    uint32_t out[32];
    for (int l = 0; l < 32; ++l) {
        auto one = [&](uint32_t bits) -> uint32_t {
            double value = from_storage<float>(bits);
            if (in.mode[2] && !(value > 0) && !std::isnan(value)) value = 0;
            return in.mode[0] ? Bfloat::encode(value, round, in.mode[3])
                              : Half::encode(value, round, in.mode[3]);
        };
        out[l] = one(a[l]) << 16 | one(b[l]);
    }
    write<uint32_t>(w, in.ops[0], out, mask, poisoned(w, in.ops[1]) | poisoned(w, in.ops[2]));
    return Step::kNext;
}

// cvt.rn.satfinite.{e4m3x2,e5m2x2}.f32 d, a, b and back, cvt.rn.f16x2.{e4m3x2,e5m2x2} d, a. mode:
// e5m2?
Step cvt_to_fp8(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    auto *a = source<float>(w, in.ops[1]), *b = source<float>(w, in.ops[2]);
    for (int l = 0; l < 32; ++l) {
        if (!(mask >> l & 1)) continue;
        auto one = [&](uint32_t bits) -> uint32_t {
            double value = from_storage<float>(bits);
            return in.mode[0] ? E5m2::encode(value, Round::kNearestEven, true)
                              : E4m3::encode(value, Round::kNearestEven, true);
        };
        set_lane(w, in.ops[0], l, one(a[l]) << 8 | one(b[l]),
                 (poisoned(w, in.ops[1]) | poisoned(w, in.ops[2])) >> l & 1);
    }
    return Step::kNext;
}
Step cvt_from_fp8(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    for (int l = 0; l < 32; ++l) {
        if (!(mask >> l & 1)) continue;
        auto bits = static_cast<uint32_t>(lane_bits(w, in.ops[1], l));
        auto one = [&](uint32_t x) -> uint32_t {
            return Half::encode(in.mode[0] ? E5m2::decode(x) : E4m3::decode(x));
        };
        set_lane(w, in.ops[0], l, one(bits >> 8 & 0xff) << 16 | one(bits & 0xff),
                 poisoned(w, in.ops[1]) >> l & 1);
    }
    return Step::kNext;
}

}  // namespace

bool bind_convert(const Opcode& op, Instruction& in) {
    if (op.base != "cvt" || op.modifiers.size() < 2) return false;
    in.kind = Class::kConvert;
    auto from = op.last(), to = op.last(1);
    Round round = Round::kNearestEven;
    bool integral = false, saturate = false, relu = false, finite = false;
    for (size_t i = 0; i + 2 < op.modifiers.size(); ++i) {
        auto m = op.modifiers[i];
        if (m == "rn" || m == "rni")
            round = Round::kNearestEven;
        else if (m == "rz" || m == "rzi")
            round = Round::kZero;
        else if (m == "rm" || m == "rmi")
            round = Round::kDown;
        else if (m == "rp" || m == "rpi")
            round = Round::kUp;
        else if (m == "rna")
            round = Round::kNearestAway;
        else if (m == "sat")
            saturate = true;
        else if (m == "relu")
            relu = true;
        else if (m == "satfinite")
            finite = true;
        else if (m != "ftz")
            return false;
        integral |= m.size() == 3 && m[2] == 'i';
    }
    bool pair = to == "f16x2" || to == "bf16x2", fp8 = to == "e4m3x2" || to == "e5m2x2",
         back = from == "e4m3x2" || from == "e5m2x2";
    if (pair && from == "f32") {
        in.handler = cvt_pair;
        in.mode[0] = to == "bf16x2", in.mode[1] = static_cast<int>(round), in.mode[2] = relu,
        in.mode[3] = finite;
    } else if (fp8 && from == "f32" && finite && !relu) {
        in.handler = cvt_to_fp8;
        in.mode[0] = to == "e5m2x2";
    } else if (back && to == "f16x2" && !relu) {
        in.handler = cvt_from_fp8;
        in.mode[0] = from == "e5m2x2";
    } else {
        int t = type_of(to), f = type_of(from);
        if (t == kNone || f == kNone || finite) return false;
        if (t == kTf32 && (f != kF32 || round != Round::kNearestAway)) return false;
        if (t == kF64 && is_integer(f) && round != Round::kNearestEven) return false;
        in.handler = cvt;
        in.mode[0] = t, in.mode[1] = f, in.mode[2] = static_cast<int>(round), in.mode[3] = saturate,
        in.mode[4] = relu;
        in.mode[5] = integral && !is_integer(t) && !is_integer(f);
    }
    return true;
}

}  // namespace emu
