// Comparison and selection: setp, set, testp, selp, slct.
#include "alu.h"

namespace emu {
namespace {

enum Compare { kEq, kNe, kLt, kLe, kGt, kGe, kEqu, kNeu, kLtu, kLeu, kGtu, kGeu, kNum, kNan };
constexpr int kOrderedCompares = kEqu;  // those before need no NaN to be told apart

template <class T>
bool compare(int how, T a, T b) {
    bool unordered = false;
    if constexpr (std::is_floating_point_v<T>) unordered = std::isnan(a) || std::isnan(b);
    switch (how) {
        case kEq: return a == b;
        case kNe: return a != b && !unordered;
        case kLt: return a < b;
        case kLe: return a <= b;
        case kGt: return a > b;
        case kGe: return a >= b;
        case kEqu: return a == b || unordered;
        case kNeu: return a != b || unordered;
        case kLtu: return a < b || unordered;
        case kLeu: return a <= b || unordered;
        case kGtu: return a > b || unordered;
        case kGeu: return a >= b || unordered;
        case kNum: return !unordered;
        default: return unordered;
    }
}

template <class T>
struct Whole {
    using Bits = Unsigned<T>;
    static T decode(Bits bits) { return static_cast<T>(bits); }
};

// A bit a lane; shift: which half of a packed register.
using Lanes = uint32_t (*)(const Warp&, const Operand&, const Operand&, int how, bool ftz,
                           int shift);
template <class Codec>
uint32_t compare_lanes(const Warp& w, const Operand& x, const Operand& y, int how, bool ftz,
                       int shift) {
    using Bits = typename Codec::Bits;
    auto *a = source<Bits>(w, x), *b = source<Bits>(w, y);
    auto value = [&](auto storage) {
        auto bits = static_cast<Bits>(storage >> shift);
        if constexpr (requires { Codec::kExponent; })
            if (ftz) bits = flush<Codec>(bits);
        return Codec::decode(bits);
    };
    uint32_t out = 0;
    for (int l = 0; l < 32; ++l) out |= uint32_t{compare(how, value(a[l]), value(b[l]))} << l;
    return out;
}

enum Combination : int32_t { kAlone, kAnd, kOr, kXor };
uint32_t combine(int how, uint32_t value, uint32_t other) {
    return how == kAnd ? value & other : how == kOr ? value | other : value ^ other;
}

// The last operand of the forms with a combination.
struct Third {
    uint32_t value = 0, poison = 0;
    int how;
    Third(const Warp& w, const Instruction& in) : how(in.mode[1]) {
        if (how == kAlone) return;
        const Operand& o = in.ops[in.count - 1];
        value = predicate(w, o), poison = poisoned(w, o);
    }
    uint32_t with(uint32_t compared) const {
        return how == kAlone ? compared : combine(how, compared, value);
    }
};

// mode: compare, combination, ftz, two destinations (of a pair: a half each; else the second is
// that of the opposite)
template <Lanes kLanes, bool kPair>
Step setp(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    const Operand *x = in.ops + 1 + in.mode[3], *y = x + 1;
    Third third(w, in);
    uint32_t poison = poisoned(w, *x) | poisoned(w, *y) | third.poison;
    uint32_t value = kLanes(w, *x, *y, in.mode[0], in.mode[2], 0);
    uint32_t second = kPair ? kLanes(w, *x, *y, in.mode[0], in.mode[2], 16) : ~value;
    set_predicate(w, in.ops[0], third.with(value), mask, poison);
    if (in.mode[3]) set_predicate(w, in.ops[1], third.with(second), mask, poison);
    return Step::kNext;
}

// mode: compare, combination, ftz, what stands for true
template <Lanes kLanes, bool kPair>
Step set(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    const Operand &x = in.ops[1], &y = in.ops[2];
    Third third(w, in);
    auto truth = static_cast<uint32_t>(in.mode[3]);
    uint32_t low = third.with(kLanes(w, x, y, in.mode[0], in.mode[2], 0)), high = 0, out[32];
    if constexpr (kPair) high = third.with(kLanes(w, x, y, in.mode[0], in.mode[2], 16));
    for (int l = 0; l < 32; ++l)
        out[l] = (low >> l & 1 ? truth : 0) | (high >> l & 1 ? truth << 16 : 0);
    write<uint32_t>(w, in.ops[0], out, mask, poisoned(w, x) | poisoned(w, y) | third.poison);
    return Step::kNext;
}

struct CompareHandlers {
    std::string_view type;
    Handler setp, set;
};
template <class Codec, bool kPair = false>
constexpr CompareHandlers of(std::string_view type) {
    return {type, setp<compare_lanes<Codec>, kPair>, set<compare_lanes<Codec>, kPair>};
}
// Halves of a pair are read from 32 bits.
template <class Format>
struct Packed : Short<Format> {
    using Bits = uint32_t;
    static constexpr Bits kExponent = Format::kInfinityBits, kSign = Format::kSign;
    static double decode(Bits bits) { return Format::decode(bits & 0xffff); }
};
constexpr CompareHandlers kCompares[] = {
    of<Whole<uint16_t>>("b16"), of<Whole<uint32_t>>("b32"),      of<Whole<uint64_t>>("b64"),
    of<Whole<uint16_t>>("u16"), of<Whole<uint32_t>>("u32"),      of<Whole<uint64_t>>("u64"),
    of<Whole<int16_t>>("s16"),  of<Whole<int32_t>>("s32"),       of<Whole<int64_t>>("s64"),
    of<Plain<float>>("f32"),    of<Plain<double>>("f64"),        of<Short<Half>>("f16"),
    of<Short<Bfloat>>("bf16"),  of<Packed<Half>, true>("f16x2"), of<Packed<Bfloat>, true>("bf16x2"),
};

int compare_named(std::string_view name, char kind) {
    constexpr std::string_view names[] = {"eq",  "ne",  "lt",  "le",  "gt",  "ge",  "equ",
                                          "neu", "ltu", "leu", "gtu", "geu", "num", "nan"};
    constexpr std::pair<std::string_view, int> unsigned_names[] = {
        {"lo", kLt}, {"ls", kLe}, {"hi", kGt}, {"hs", kGe}};
    if (kind == 'u')
        for (auto [unsigned_name, how] : unsigned_names)
            if (name == unsigned_name) return how;
    int known = kind == 'b' ? kNe + 1 : kind == 'f' ? kNan + 1 : kOrderedCompares;
    for (int how = 0; how < known; ++how)
        if (name == names[how]) return how;
    return -1;
}

// What set writes for true: ones for an integer, 1.0 for a float; 0 where there is no such form.
uint32_t truth(std::string_view type, bool pair) {
    if (pair)
        return type == "f16x2"                  ? 0x3c00
               : type == "bf16x2"               ? 0x3f80
               : type == "u32" || type == "s32" ? 0xffff
                                                : 0;
    if (type == "u32" || type == "s32") return 0xffffffff;
    if (type == "u16" || type == "s16") return 0xffff;
    return type == "f32" ? 0x3f800000 : type == "f16" ? 0x3c00 : type == "bf16" ? 0x3f80 : 0;
}

bool bind_setp_or_set(const Opcode& op, Instruction& in) {
    Modifiers left(op);
    bool to_predicate = op.base == "setp";
    auto type = left.take_last(), name = left.take_first();
    bool pair = type.ends_with("x2"), bfloat = type.starts_with("bf");
    bool floating = type.starts_with("f") || bfloat;
    in.mode[0] = compare_named(name, bfloat ? 'f' : type.empty() ? ' ' : type[0]);
    in.mode[1] = 1 + left.take_one_of({"and", "or", "xor"});
    in.mode[2] = left.take("ftz");
    if (in.mode[0] < 0 || (in.mode[2] && (!floating || bfloat || type == "f64"))) return false;
    int operands = 3 + (in.mode[1] != kAlone);
    if (to_predicate) {
        in.mode[3] = in.count == operands + 1;
        operands += in.mode[3];
        if (pair && !in.mode[3]) return false;
    } else {
        in.mode[3] = static_cast<int32_t>(truth(left.take_last(), pair));
        if (!in.mode[3]) return false;
    }
    if (!left.none_left() || in.count != operands) return false;
    for (const auto& entry : kCompares)
        if (entry.type == type) in.handler = to_predicate ? entry.setp : entry.set;
    in.kind = to_predicate ? Class::kPredicate : floating ? Class::kFloat : Class::kInteger;
    return in.handler;
}

// ---- testp

enum Property { kFinite, kInfinite, kNumber, kNotANumber, kNormal, kSubnormal };
template <class T>
Step testp(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    auto* a = source<T>(w, in.ops[1]);
    auto holds = [&](T value) {
        switch (in.mode[0]) {
            case kFinite: return std::isfinite(value);
            case kInfinite: return std::isinf(value);
            case kNumber: return !std::isnan(value);
            case kNotANumber: return std::isnan(value);
            case kNormal: return std::isnormal(value);
            default: return std::fpclassify(value) == FP_SUBNORMAL;
        }
    };
    uint32_t out = 0;
    for (int l = 0; l < 32; ++l) out |= uint32_t{holds(from_storage<T>(a[l]))} << l;
    set_predicate(w, in.ops[0], out, mask, poisoned(w, in.ops[1]));
    return Step::kNext;
}

bool bind_testp(const Opcode& op, Instruction& in) {
    Modifiers left(op);
    auto type = left.take_last();
    in.mode[0] =
        left.take_one_of({"finite", "infinite", "number", "notanumber", "normal", "subnormal"});
    in.kind = Class::kPredicate;
    in.handler = type == "f32" ? testp<float> : type == "f64" ? testp<double> : nullptr;
    return in.handler && in.mode[0] >= 0 && left.none_left() && in.count == 2;
}

// ---- selp, slct

template <class T>
Step selp(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    auto *a = source<T>(w, in.ops[1]), *b = source<T>(w, in.ops[2]);
    uint32_t p = predicate(w, in.ops[3]);
    Storage<T> out[32];
    for (int l = 0; l < 32; ++l) out[l] = p >> l & 1 ? a[l] : b[l];
    uint32_t poison =
        (poisoned(w, in.ops[1]) & p) | (poisoned(w, in.ops[2]) & ~p) | poisoned(w, in.ops[3]);
    write<T>(w, in.ops[0], out, mask, poison);
    return Step::kNext;
}

// mode: ftz
template <class Codec>
struct Select {
    explicit Select(const Instruction& in) : ftz(in.mode[0]) {}
    template <class T>
    T operator()(T a, T b, typename Codec::Bits c) const {
        if constexpr (requires { Codec::kExponent; })
            if (ftz) c = flush<Codec>(c);
        return Codec::decode(c) >= 0 ? a : b;
    }

  private:
    bool ftz;
};
template <class T>
Handler slct(std::string_view by) {
    if (by == "s32") return map<Select<Whole<int32_t>>, T, T, T, uint32_t>;
    return by == "f32" ? map<Select<Plain<float>>, T, T, T, uint32_t> : nullptr;
}

// By the width of a type, whatever its kind.
template <class T>
constexpr bool is_wide_as(std::string_view type) {
    return type.ends_with(sizeof(T) == 8 ? "64" : sizeof(T) == 4 ? "32" : "16") && type.size() == 3;
}

bool bind_select(const Opcode& op, Instruction& in) {
    Modifiers left(op);
    auto by = op.base == "slct" ? left.take_last() : std::string_view();
    auto type = left.take_last();
    in.kind = Class::kMove;
    in.mode[0] = left.take("ftz");
    if (!left.none_left() || in.count != 4 || (in.mode[0] && by != "f32")) return false;
    auto choose = [&]<class T>(T) { return op.base == "slct" ? slct<T>(by) : selp<T>; };
    in.handler = is_wide_as<uint16_t>(type)   ? choose(uint16_t{})
                 : is_wide_as<uint32_t>(type) ? choose(uint32_t{})
                 : is_wide_as<uint64_t>(type) ? choose(uint64_t{})
                                              : nullptr;
    return in.handler;
}

}  // namespace

bool bind_compare(const Opcode& op, Instruction& in) {
    if (op.base == "setp" || op.base == "set") return bind_setp_or_set(op, in);
    if (op.base == "testp") return bind_testp(op, in);
    return (op.base == "selp" || op.base == "slct") && bind_select(op, in);
}

}  // namespace emu
