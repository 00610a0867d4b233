// cvt: between integers and floats of all widths, with rounding, saturation and the packed forms.
#include "alu.h"

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
    kTypes
};
constexpr std::string_view kNames[kTypes] = {"u8",  "u16", "u32",  "u64", "s8",  "s16", "s32",
                                             "s64", "f16", "bf16", "f32", "f64", "tf32"};

int type_of(std::string_view name) {
    for (int t = 0; t < kTypes; ++t)
        if (name == kNames[t]) return t;
    return -1;
}
bool is_integer(int t) { return t <= kS64; }
bool is_signed(int t) { return t >= kS8 && t <= kS64; }
int width(int t) { return t <= kS64 ? 8 << (t & 3) : t <= kBf16 ? 16 : t == kF64 ? 64 : 32; }

// ---- integers

int64_t extend(uint64_t bits, int type) {
    int shift = 64 - width(type);
    return is_signed(type) ? static_cast<int64_t>(bits << shift) >> shift
                           : static_cast<int64_t>(bits << shift >> shift);
}

// Of any integer type; a u64 above the signed ones is still told apart.
__int128 integer(uint64_t bits, int type) {
    return type == kU64 ? static_cast<__int128>(bits) : extend(bits, type);
}
__int128 lowest(int type) { return is_signed(type) ? -(__int128{1} << (width(type) - 1)) : 0; }
__int128 highest(int type) { return (__int128{1} << (width(type) - is_signed(type))) - 1; }

template <class T>
T round_integral(T value, Round round) {
    switch (round) {
        case Round::kNearestEven: return std::nearbyint(value);
        case Round::kZero: return std::trunc(value);
        case Round::kDown: return std::floor(value);
        default: return std::ceil(value);
    }
}

uint64_t to_integer(double value, int from, int to, Round round) {
    if (std::isnan(value)) {
        bool zero = from != kF64 && width(to) != 64;
        return zero ? 0 : uint64_t{1} << (width(to) - 1);
    }
    value = round_integral(value, round);
    double low = is_signed(to) ? -std::ldexp(1.0, width(to) - 1) : 0,
           beyond = std::ldexp(1.0, width(to) - is_signed(to));
    if (value < low) return static_cast<uint64_t>(lowest(to));
    if (value >= beyond) return static_cast<uint64_t>(highest(to));
    return value < 0 ? static_cast<uint64_t>(static_cast<int64_t>(value))
                     : static_cast<uint64_t>(value);
}

// ---- floats

double decode(uint64_t bits, int type) {
    if (type == kF16) return Half::decode(static_cast<uint32_t>(bits));
    if (type == kBf16) return Bfloat::decode(static_cast<uint32_t>(bits));
    if (type == kF64) return from_storage<double>(bits);
    return from_storage<float>(static_cast<uint32_t>(bits));
}

// volatile: the conversion happens here, while the rounding holds.
template <class To, class From>
To rounded(From value, Round round) {
    if (round == Round::kNearestEven) return static_cast<To>(value);
    RoundingMode mode(round);
    volatile From in = value;
    volatile To out = static_cast<To>(in);
    return out;
}

// An integer as a double, odd where it is inexact: so a second rounding to a short format is right.
double to_odd(__int128 value) {
    double near = static_cast<double>(value);
    auto back = static_cast<__int128>(near);
    auto bits = std::bit_cast<uint64_t>(near);
    if (back == value || (bits & 1)) return near;
    bool away = (value > back) == (value > 0);
    return std::bit_cast<double>(away ? bits + 1 : bits - 1);
}

// mode: destination, source, rounding, modifiers
enum Modifier : int32_t { kSat = 1, kRelu = 2, kFinite = 4, kFtz = 8, kIntegral = 16 };

double clamped(double value, int32_t given) {
    if (given & kSat) return std::isnan(value) ? 0 : std::clamp(value, 0.0, 1.0);
    if (given & kRelu) return value > 0 || std::isnan(value) ? value : 0;
    return value;
}

uint64_t encode(double value, int to, Round round, int32_t given) {
    bool finite = given & kFinite;
    switch (to) {
        case kF16: return Half::encode(value, round, finite);
        case kBf16: return Bfloat::encode(value, round, finite);
        case kTf32:
            return std::isnan(value) ? to_storage(canonical(static_cast<float>(value)))
                                     : Tf32::encode(value, round, finite) << 13;
        case kF32: {
            uint32_t bits = to_storage(canonical(rounded<float>(value, round)));
            return given & kFtz ? flush<Plain<float>>(bits) : bits;
        }
        default: return to_storage(canonical(value));
    }
}

uint64_t convert_integer(uint64_t bits, int from, int to, Round round, int32_t given) {
    __int128 value = integer(bits, from);
    // a destination register wider than its type takes the extended value
    if (is_integer(to)) {
        if (given & kSat) value = std::clamp(value, lowest(to), highest(to));
        return static_cast<uint64_t>(extend(static_cast<uint64_t>(value), to));
    }
    if (to == kF64) {
        double near = from == kU64 ? rounded<double>(static_cast<uint64_t>(value), round)
                                   : rounded<double>(static_cast<int64_t>(value), round);
        return to_storage(clamped(near, given));
    }
    bool exact = width(from) < 64;
    double wide = exact ? static_cast<double>(extend(bits, from)) : to_odd(value);
    return encode(clamped(wide, given), to, round, given);
}

uint64_t convert_float(uint64_t bits, int from, int to, Round round, int32_t given) {
    if ((given & kFtz) && from == kF32) bits = flush<Plain<float>>(static_cast<uint32_t>(bits));
    double value = decode(bits, from);
    if (is_integer(to))
        return static_cast<uint64_t>(extend(to_integer(value, from, to, round), to));
    if (given & kIntegral) value = round_integral(value, round);
    return encode(clamped(value, given), to, round, given);
}

Step cvt(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    auto convert = is_integer(in.mode[1]) ? convert_integer : convert_float;
    for (int l = 0; l < 32; ++l) {
        if (!(mask >> l & 1)) continue;
        uint64_t out = convert(lane_bits(w, in.ops[1], l), in.mode[1], in.mode[0],
                               static_cast<Round>(in.mode[2]), in.mode[3]);
        set_lane(w, in.ops[0], l, out, poisoned(w, in.ops[1]) >> l & 1);
    }
    return Step::kNext;
}

// ---- packed forms: two elements of Format in one register, the first operand above

// mode: -, -, rounding, modifiers
template <class Format>
struct Packer {
    static constexpr int kWidth = std::bit_width(Format::kSign);
    explicit Packer(const Instruction& in)
        : round(static_cast<Round>(in.mode[2])), given(in.mode[3]) {}
    uint32_t pack(double high, double low) const { return one(high) << kWidth | one(low); }

  private:
    Round round;
    int32_t given;
    uint32_t one(double value) const {
        return Format::encode(clamped(value, given), round, given & kFinite);
    }
};
template <class Format>
struct PackFloats : Packer<Format> {
    using Packer<Format>::Packer;
    uint32_t operator()(float high, float low) const { return this->pack(high, low); }
};
template <class Format, class From>
struct Repack : Packer<Format> {
    using Packer<Format>::Packer;
    uint32_t operator()(uint32_t pair) const {
        constexpr int kFrom = Packer<From>::kWidth;
        constexpr uint32_t kField = (1u << kFrom) - 1;
        return this->pack(From::decode(pair >> kFrom & kField), From::decode(pair & kField));
    }
};

struct PackedForm {
    std::string_view to, from;
    int operands;
    bool always_finite;
    Handler handler;
};
constexpr PackedForm kPacked[] = {
    {"f16x2", "f32", 2, false, map<PackFloats<Half>, uint32_t, float, float>},
    {"bf16x2", "f32", 2, false, map<PackFloats<Bfloat>, uint32_t, float, float>},
    {"e4m3x2", "f32", 2, true, map<PackFloats<E4m3>, uint16_t, float, float>},
    {"e5m2x2", "f32", 2, true, map<PackFloats<E5m2>, uint16_t, float, float>},
    {"e4m3x2", "f16x2", 1, true, map<Repack<E4m3, Half>, uint16_t, uint32_t>},
    {"e5m2x2", "f16x2", 1, true, map<Repack<E5m2, Half>, uint16_t, uint32_t>},
    {"f16x2", "e4m3x2", 1, false, map<Repack<Half, E4m3>, uint32_t, uint16_t>},
    {"f16x2", "e5m2x2", 1, false, map<Repack<Half, E5m2>, uint32_t, uint16_t>},
};

bool bind_packed(std::string_view to, std::string_view from, Round round, Instruction& in) {
    for (const PackedForm& form : kPacked) {
        if (form.to != to || form.from != from) continue;
        bool finite = in.mode[3] & kFinite, eight = form.always_finite || form.operands == 1;
        if ((in.mode[3] & ~(kRelu | kFinite)) || (form.always_finite && !finite)) return false;
        bool known = round == Round::kNearestEven || (round == Round::kZero && !eight);
        in.handler = form.handler;
        return known && in.count == form.operands + 1;
    }
    return false;
}

// ---- cvt.pack: two s32 saturated side by side, above them what c has below

// mode: type
struct PackIntegers {
    explicit PackIntegers(const Instruction& in) : type(in.mode[0]) {}
    uint32_t operator()(int32_t a, int32_t b) const { return one(a) << width(type) | one(b); }
    uint32_t operator()(int32_t a, int32_t b, uint32_t c) const {
        return (*this)(a, b) | c << (2 * width(type));
    }

  private:
    int type;
    uint32_t one(int32_t value) const {
        auto bits = static_cast<uint32_t>(std::clamp<__int128>(value, lowest(type), highest(type)));
        return bits & ((1u << width(type)) - 1);
    }
};

bool bind_pack(Modifiers left, Instruction& in) {
    bool third = left.take("b32");
    if (!left.take("pack") || !left.take("sat") || left.take_last() != "s32") return false;
    in.mode[0] = type_of(left.take_last());
    if (!left.none_left() || in.mode[0] < 0 || !is_integer(in.mode[0])) return false;
    if (width(in.mode[0]) != (third ? 8 : 16)) return false;
    in.handler = third ? Handler{map<PackIntegers, uint32_t, int32_t, int32_t, uint32_t>}
                       : map<PackIntegers, uint32_t, int32_t, int32_t>;
    return in.count == (third ? 4 : 3);
}

// ---- which forms exist

// How the opcode says that it rounds.
enum class Rounding { kNone, kFloat, kIntegral, kAway };

bool widens(int from, int to) {
    return width(to) > width(from) &&
           to != kTf32;  // every f16 and bf16 is an f32, every f32 an f64
}

bool rounding_fits(Rounding rounding, Round round, int from, int to) {
    if (is_integer(from) && is_integer(to)) return rounding == Rounding::kNone;
    if (is_integer(from)) return rounding == Rounding::kFloat;
    if (is_integer(to)) return rounding == Rounding::kIntegral;
    if (to == kTf32) {
        bool nearest_or_zero = round == Round::kNearestEven || round == Round::kZero;
        return from == kF32 &&
               (rounding == Rounding::kAway || (rounding == Rounding::kFloat && nearest_or_zero));
    }
    if (to == from) return rounding == Rounding::kNone || rounding == Rounding::kIntegral;
    return rounding == (widens(from, to) ? Rounding::kNone : Rounding::kFloat);
}

bool modifiers_fit(int32_t given, int from, int to) {
    bool short_float = to == kF16 || to == kBf16 || to == kTf32;
    if ((given & kFtz) && from != kF32 && to != kF32) return false;
    if ((given & kRelu) && (!short_float || from != kF32 || (given & kSat))) return false;
    if ((given & kFinite) && (!short_float || from != kF32)) return false;
    return !(given & kSat) || (to != kBf16 && to != kTf32);
}

}  // namespace

bool bind_convert(const Opcode& op, Instruction& in) {
    if (op.base != "cvt") return false;
    in.kind = Class::kConvert;
    Modifiers left(op);
    if (op.has("pack")) return bind_pack(left, in);
    auto from_name = left.take_last(), to_name = left.take_last();
    auto round = Round::kNearestEven;
    auto rounding = Rounding::kNone;
    if (int place = left.take_one_of({"rn", "rz", "rm", "rp"}); place >= 0)
        round = static_cast<Round>(place), rounding = Rounding::kFloat;
    else if (place = left.take_one_of({"rni", "rzi", "rmi", "rpi"}); place >= 0)
        round = static_cast<Round>(place), rounding = Rounding::kIntegral;
    else if (left.take("rna"))
        round = Round::kNearestAway, rounding = Rounding::kAway;
    int32_t given = rounding == Rounding::kIntegral ? kIntegral : 0;
    for (auto [name, modifier] : {std::pair<std::string_view, int32_t>{"sat", kSat},
                                  {"relu", kRelu},
                                  {"satfinite", kFinite},
                                  {"ftz", kFtz}})
        if (left.take(name)) given |= modifier;
    if (!left.none_left()) return false;
    in.mode[2] = static_cast<int32_t>(round), in.mode[3] = given;
    if (rounding == Rounding::kFloat && bind_packed(to_name, from_name, round, in)) return true;
    int to = type_of(to_name), from = type_of(from_name);
    if (to < 0 || from < 0 || from == kTf32 || in.count != 2) return false;
    if (!rounding_fits(rounding, round, from, to) || !modifiers_fit(given, from, to)) return false;
    in.mode[0] = to, in.mode[1] = from;
    in.handler = cvt;
    return true;
}

}  // namespace emu
