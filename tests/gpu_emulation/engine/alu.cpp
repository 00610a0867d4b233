// Integer, float, half and predicate arithmetic: one functor an operation, one template a number of
// operands.
#include <bit>
#include <cmath>

#include "machine.h"
#include "numbers.h"

namespace emu {
namespace {

template <class T, class F>
Step unary(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    auto* a = source<T>(w, in.ops[1]);
    Storage<T> out[32];
    for (int l = 0; l < 32; ++l) out[l] = to_storage<T>(F{}(from_storage<T>(a[l])));
    write<T>(w, in.ops[0], out, mask, poisoned(w, in.ops[1]));
    return Step::kNext;
}

template <class T, class F>
Step binary(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    auto *a = source<T>(w, in.ops[1]), *b = source<T>(w, in.ops[2]);
    Storage<T> out[32];
    for (int l = 0; l < 32; ++l)
        out[l] = to_storage<T>(F{}(from_storage<T>(a[l]), from_storage<T>(b[l])));
    write<T>(w, in.ops[0], out, mask, poisoned(w, in.ops[1]) | poisoned(w, in.ops[2]));
    return Step::kNext;
}

template <class T, class F>
Step ternary(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    auto *a = source<T>(w, in.ops[1]), *b = source<T>(w, in.ops[2]), *c = source<T>(w, in.ops[3]);
    Storage<T> out[32];
    for (int l = 0; l < 32; ++l)
        out[l] =
            to_storage<T>(F{}(from_storage<T>(a[l]), from_storage<T>(b[l]), from_storage<T>(c[l])));
    write<T>(w, in.ops[0], out, mask,
             poisoned(w, in.ops[1]) | poisoned(w, in.ops[2]) | poisoned(w, in.ops[3]));
    return Step::kNext;
}

// The second operand is 32 bits whatever T is: shifts.
template <class T, class F>
Step shift(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    auto* a = source<T>(w, in.ops[1]);
    auto* b = source<uint32_t>(w, in.ops[2]);
    Storage<T> out[32];
    for (int l = 0; l < 32; ++l) out[l] = to_storage<T>(F{}(from_storage<T>(a[l]), b[l]));
    write<T>(w, in.ops[0], out, mask, poisoned(w, in.ops[1]) | poisoned(w, in.ops[2]));
    return Step::kNext;
}

template <class Wide, class Narrow>
Step multiply_wide(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    auto *a = source<Narrow>(w, in.ops[1]), *b = source<Narrow>(w, in.ops[2]);
    const Storage<Wide>* c = in.count > 3 ? source<Wide>(w, in.ops[3]) : nullptr;
    Storage<Wide> out[32];
    for (int l = 0; l < 32; ++l) {
        using U = std::make_unsigned_t<Wide>;
        U product = static_cast<U>(static_cast<Wide>(from_storage<Narrow>(a[l]))) *
                    static_cast<U>(static_cast<Wide>(from_storage<Narrow>(b[l])));
        out[l] = to_storage<Wide>(static_cast<Wide>(product + (c ? static_cast<U>(c[l]) : 0)));
    }
    uint32_t poison =
        poisoned(w, in.ops[1]) | poisoned(w, in.ops[2]) | (c ? poisoned(w, in.ops[3]) : 0);
    write<Wide>(w, in.ops[0], out, mask, poison);
    return Step::kNext;
}

// ---- operations
// ---------------------------------------------------------------------------------------------------------------

#define OPERATION(name, parameters, expression) \
    struct name {                               \
        template <class T>                      \
        T operator() parameters const {         \
            return expression;                  \
        }                                       \
    }
template <class T>
using U = std::make_unsigned_t<T>;
template <class T>
constexpr int kBits = sizeof(T) * 8;

OPERATION(Add, (T a, T b), static_cast<T>(U<T>(a) + U<T>(b)));
OPERATION(Sub, (T a, T b), static_cast<T>(U<T>(a) - U<T>(b)));
OPERATION(MulLow, (T a, T b), static_cast<T>(uint64_t(a) * uint64_t(b)));
OPERATION(MadLow, (T a, T b, T c), static_cast<T>(uint64_t(a) * uint64_t(b) + uint64_t(c)));
OPERATION(MulHigh, (T a, T b),
          static_cast<T>((static_cast<__int128>(a) * static_cast<__int128>(b)) >> kBits<T>));
OPERATION(MulHighU, (T a, T b),
          static_cast<T>((static_cast<unsigned __int128>(a) * static_cast<unsigned __int128>(b)) >>
                         kBits<T>));
OPERATION(MadHigh, (T a, T b, T c),
          static_cast<T>(((static_cast<__int128>(a) * static_cast<__int128>(b)) >> kBits<T>)+c));
// Division by zero: the ISA leaves the result unspecified; all ones is what chips give.
OPERATION(Div, (T a, T b),
          b == 0                                             ? static_cast<T>(-1)
          : (b == static_cast<T>(-1) && std::is_signed_v<T>) ? static_cast<T>(-U<T>(a))
                                                             : static_cast<T>(a / b));
OPERATION(Rem, (T a, T b),
          b == 0                                             ? a
          : (b == static_cast<T>(-1) && std::is_signed_v<T>) ? T(0)
                                                             : static_cast<T>(a % b));
OPERATION(Min, (T a, T b), b < a ? b : a);
OPERATION(Max, (T a, T b), a < b ? b : a);
OPERATION(And, (T a, T b), static_cast<T>(a& b));
OPERATION(Or, (T a, T b), static_cast<T>(a | b));
OPERATION(Xor, (T a, T b), static_cast<T>(a ^ b));
OPERATION(Not, (T a), static_cast<T>(~a));
OPERATION(Cnot, (T a), static_cast<T>(a == 0));
OPERATION(Neg, (T a), static_cast<T>(-U<T>(a)));
OPERATION(Abs, (T a), a < 0 ? static_cast<T>(-U<T>(a)) : a);
OPERATION(Move, (T a), a);
OPERATION(Popc, (T a), static_cast<T>(std::popcount(U<T>(a))));
OPERATION(Brev, (T a), [](T x) {
    U<T> r = 0;
    for (int i = 0; i < kBits<T>; ++i) r |= (U<T>(x) >> i & 1) << (kBits<T> - 1 - i);
    return static_cast<T>(r);
}(a));
struct ShiftLeft {
    template <class T>
    T operator()(T a, uint32_t n) const {
        return n >= kBits<T> ? T(0) : static_cast<T>(U<T>(a) << n);
    }
};
struct ShiftRight {
    template <class T>
    T operator()(T a, uint32_t n) const {
        if (n >= kBits<T>) n = std::is_signed_v<T> ? kBits<T> - 1 : kBits<T>;
        return n >= kBits<T> ? T(0) : static_cast<T>(a >> n);
    }
};
OPERATION(FAdd, (T a, T b), canonical(a + b));
OPERATION(FSub, (T a, T b), canonical(a - b));
OPERATION(FMul, (T a, T b), canonical(a* b));
OPERATION(FDiv, (T a, T b), canonical(a / b));
OPERATION(Fma, (T a, T b, T c), canonical(std::fma(a, b, c)));
OPERATION(FMin, (T a, T b),
          std::isnan(a)   ? (std::isnan(b) ? canonical(a) : b)
          : std::isnan(b) ? a
                          : (a == b ? (std::signbit(a) ? a : b) : (a < b ? a : b)));
OPERATION(FMax, (T a, T b),
          std::isnan(a)   ? (std::isnan(b) ? canonical(a) : b)
          : std::isnan(b) ? a
                          : (a == b ? (std::signbit(a) ? b : a) : (a > b ? a : b)));
OPERATION(FMinNan, (T a, T b), (std::isnan(a) || std::isnan(b)) ? canonical(a + b) : FMin{}(a, b));
OPERATION(FMaxNan, (T a, T b), (std::isnan(a) || std::isnan(b)) ? canonical(a + b) : FMax{}(a, b));
OPERATION(FAbs, (T a), std::fabs(a));
OPERATION(FNeg, (T a), -a);
OPERATION(Sqrt, (T a), canonical(std::sqrt(a)));
OPERATION(Rsqrt, (T a), canonical(static_cast<T>(1.0 / std::sqrt(static_cast<double>(a)))));
OPERATION(Rcp, (T a), canonical(T(1) / a));
OPERATION(Exp2, (T a), canonical(static_cast<T>(std::exp2(static_cast<double>(a)))));
OPERATION(Log2, (T a), canonical(static_cast<T>(std::log2(static_cast<double>(a)))));
OPERATION(Sine, (T a), canonical(static_cast<T>(std::sin(static_cast<double>(a)))));
OPERATION(Cosine, (T a), canonical(static_cast<T>(std::cos(static_cast<double>(a)))));
OPERATION(Tanh, (T a), canonical(static_cast<T>(std::tanh(static_cast<double>(a)))));
#undef OPERATION

// Halves are computed in double and rounded once: exact for add, mul and fma of 11- and 8-bit
// significands save double rounding beyond 53 bits, which fma of bf16 can reach; numbers.h's
// fused() rounds to odd first.
template <class H, class F>
struct HalfUnary {
    uint16_t operator()(uint16_t a) const { return H::encode(F{}(H::decode(a))); }
};
template <class H, class F>
struct HalfBinary {
    uint16_t operator()(uint16_t a, uint16_t b) const {
        return H::encode(F{}(H::decode(a), H::decode(b)));
    }
};
template <class H>
struct HalfFma {
    uint16_t operator()(uint16_t a, uint16_t b, uint16_t c) const {
        return H::encode(fused(H::decode(a), H::decode(b), H::decode(c)));
    }
};
template <class H>
struct HalfFmaRelu {
    uint16_t operator()(uint16_t a, uint16_t b, uint16_t c) const {
        double r = fused(H::decode(a), H::decode(b), H::decode(c));
        return H::encode(r > 0 || std::isnan(r) ? r : 0.0);
    }
};
// Two halves in 32 bits.
template <class F>
struct Pair {
    template <class... A>
    uint32_t operator()(A... a) const {
        return F{}(static_cast<uint16_t>(a)...) |
               static_cast<uint32_t>(F{}(static_cast<uint16_t>(a >> 16)...)) << 16;
    }
};

template <class F16, class B16>
Handler half_unary(std::string_view t) {
    if (t == "f16") return unary<uint16_t, F16>;
    if (t == "bf16") return unary<uint16_t, B16>;
    if (t == "f16x2") return unary<uint32_t, Pair<F16>>;
    return t == "bf16x2" ? unary<uint32_t, Pair<B16>> : nullptr;
}
template <class F16, class B16>
Handler half_binary(std::string_view t) {
    if (t == "f16") return binary<uint16_t, F16>;
    if (t == "bf16") return binary<uint16_t, B16>;
    if (t == "f16x2") return binary<uint32_t, Pair<F16>>;
    return t == "bf16x2" ? binary<uint32_t, Pair<B16>> : nullptr;
}
template <class F16, class B16>
Handler half_ternary(std::string_view t) {
    if (t == "f16") return ternary<uint16_t, F16>;
    if (t == "bf16") return ternary<uint16_t, B16>;
    if (t == "f16x2") return ternary<uint32_t, Pair<F16>>;
    return t == "bf16x2" ? ternary<uint32_t, Pair<B16>> : nullptr;
}
template <class F>
Handler halves2(std::string_view t) {
    return half_binary<HalfBinary<Half, F>, HalfBinary<Bfloat, F>>(t);
}
template <class F>
Handler halves1(std::string_view t) {
    return half_unary<HalfUnary<Half, F>, HalfUnary<Bfloat, F>>(t);
}

// ---- the choice of the instance
// -----------------------------------------------------------------------------------------------

template <class F>
Handler integer2(std::string_view t) {
    if (t == "s32") return binary<int32_t, F>;
    if (t == "u32" || t == "b32") return binary<uint32_t, F>;
    if (t == "s64") return binary<int64_t, F>;
    if (t == "u64" || t == "b64") return binary<uint64_t, F>;
    if (t == "s16") return binary<int16_t, F>;
    return t == "u16" || t == "b16" ? binary<uint16_t, F> : nullptr;
}
template <class F>
Handler integer1(std::string_view t) {
    if (t == "s32") return unary<int32_t, F>;
    if (t == "u32" || t == "b32") return unary<uint32_t, F>;
    if (t == "s64") return unary<int64_t, F>;
    if (t == "u64" || t == "b64") return unary<uint64_t, F>;
    if (t == "s16") return unary<int16_t, F>;
    return t == "u16" || t == "b16" ? unary<uint16_t, F> : nullptr;
}
template <class F>
Handler integer3(std::string_view t) {
    if (t == "s32") return ternary<int32_t, F>;
    if (t == "u32" || t == "b32") return ternary<uint32_t, F>;
    if (t == "s64") return ternary<int64_t, F>;
    if (t == "u64" || t == "b64") return ternary<uint64_t, F>;
    if (t == "s16") return ternary<int16_t, F>;
    return t == "u16" || t == "b16" ? ternary<uint16_t, F> : nullptr;
}
template <class F>
Handler shifts(std::string_view t) {
    if (t == "s32") return shift<int32_t, F>;
    if (t == "u32" || t == "b32") return shift<uint32_t, F>;
    if (t == "s64") return shift<int64_t, F>;
    if (t == "u64" || t == "b64") return shift<uint64_t, F>;
    if (t == "s16") return shift<int16_t, F>;
    return t == "u16" || t == "b16" ? shift<uint16_t, F> : nullptr;
}
template <class F>
Handler float1(std::string_view t) {
    return t == "f32" ? unary<float, F> : t == "f64" ? unary<double, F> : halves1<F>(t);
}
template <class F>
Handler float2(std::string_view t) {
    return t == "f32" ? binary<float, F> : t == "f64" ? binary<double, F> : halves2<F>(t);
}

bool is_float(std::string_view t) {
    return t == "f32" || t == "f64" || t == "f16" || t == "bf16" || t == "f16x2" || t == "bf16x2";
}

// ---- predicates, comparison, selection
// --------------------------------------------------------------------------------------------

enum Compare { kEq, kNe, kLt, kLe, kGt, kGe, kEqu, kNeu, kLtu, kLeu, kGtu, kGeu, kNum, kNan };

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
uint32_t compare_lanes(Warp& w, const Operand& x, const Operand& y, int how) {
    auto *a = source<T>(w, x), *b = source<T>(w, y);
    uint32_t out = 0;
    for (int l = 0; l < 32; ++l)
        out |= static_cast<uint32_t>(compare<T>(how, from_storage<T>(a[l]), from_storage<T>(b[l])))
               << l;
    return out;
}
template <class H>
uint32_t compare_halves(Warp& w, const Operand& x, const Operand& y, int how) {
    auto *a = source<uint16_t>(w, x), *b = source<uint16_t>(w, y);
    uint32_t out = 0;
    for (int l = 0; l < 32; ++l)
        out |= static_cast<uint32_t>(compare<double>(how, H::decode(static_cast<uint16_t>(a[l])),
                                                     H::decode(static_cast<uint16_t>(b[l]))))
               << l;
    return out;
}
using Lanes = uint32_t (*)(Warp&, const Operand&, const Operand&, int);

// mode: compare, second destination?, combination (0 none, 1 and, 2 or, 3 xor)
template <Lanes F>
Step setp(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    int first = in.mode[1] ? 2 : 1;
    const Operand &x = in.ops[first], &y = in.ops[first + 1];
    uint32_t value = F(w, x, y, in.mode[0]), poison = poisoned(w, x) | poisoned(w, y),
             other = ~value;
    if (in.mode[2]) {
        uint32_t c = predicate(w, in.ops[first + 2]);
        poison |= poisoned(w, in.ops[first + 2]);
        auto mix = [&](uint32_t v) {
            return in.mode[2] == 1 ? v & c : in.mode[2] == 2 ? v | c : v ^ c;
        };
        value = mix(value), other = mix(other);
    }
    set_predicate(w, in.ops[0], value, mask, poison);
    if (in.mode[1]) set_predicate(w, in.ops[1], other, mask, poison);
    return Step::kNext;
}

template <int kOp>
Step predicate_logic(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    uint32_t a = predicate(w, in.ops[1]), poison = poisoned(w, in.ops[1]), value = a;
    if constexpr (kOp == 3) value = ~a;
    if constexpr (kOp < 3) {
        uint32_t b = predicate(w, in.ops[2]), pb = poisoned(w, in.ops[2]);
        value = kOp == 0 ? a & b : kOp == 1 ? a | b : a ^ b;
        poison |= pb;
        // a known false (and) or true (or) decides whatever the other is
        if constexpr (kOp == 0) poison &= ~((~a & ~poisoned(w, in.ops[1])) | (~b & ~pb));
        if constexpr (kOp == 1) poison &= ~((a & ~poisoned(w, in.ops[1])) | (b & ~pb));
    }
    set_predicate(w, in.ops[0], value, mask, poison);
    return Step::kNext;
}

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

template <class T, class C>
Step slct(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    auto *a = source<T>(w, in.ops[1]), *b = source<T>(w, in.ops[2]);
    auto* c = source<C>(w, in.ops[3]);
    Storage<T> out[32];
    for (int l = 0; l < 32; ++l) out[l] = from_storage<C>(c[l]) >= C(0) ? a[l] : b[l];
    write<T>(w, in.ops[0], out, mask,
             poisoned(w, in.ops[1]) | poisoned(w, in.ops[2]) | poisoned(w, in.ops[3]));
    return Step::kNext;
}

// ---- bit fields, permutes, packs
// -----------------------------------------------------------------------------------------------------

Step lop3(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    auto *a = source<uint32_t>(w, in.ops[1]), *b = source<uint32_t>(w, in.ops[2]),
         *c = source<uint32_t>(w, in.ops[3]);
    uint32_t table = source<uint32_t>(w, in.ops[4])[0], out[32];
    for (int l = 0; l < 32; ++l) {
        uint32_t r = 0;
        for (int i = 0; i < 8; ++i)
            if (table >> i & 1)
                r |= (i & 4 ? a[l] : ~a[l]) & (i & 2 ? b[l] : ~b[l]) & (i & 1 ? c[l] : ~c[l]);
        out[l] = r;
    }
    write<uint32_t>(w, in.ops[0], out, mask,
                    poisoned(w, in.ops[1]) | poisoned(w, in.ops[2]) | poisoned(w, in.ops[3]));
    return Step::kNext;
}

Step prmt(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    auto *a = source<uint32_t>(w, in.ops[1]), *b = source<uint32_t>(w, in.ops[2]),
         *c = source<uint32_t>(w, in.ops[3]);
    uint32_t out[32];
    for (int l = 0; l < 32; ++l) {
        uint64_t bytes = a[l] | static_cast<uint64_t>(b[l]) << 32;
        out[l] = 0;
        for (int i = 0; i < 4; ++i) {
            uint32_t select = c[l] >> (4 * i) & 15, byte = bytes >> (8 * (select & 7)) & 0xff;
            if (select & 8) byte = byte & 0x80 ? 0xff : 0;
            out[l] |= byte << (8 * i);
        }
    }
    write<uint32_t>(w, in.ops[0], out, mask,
                    poisoned(w, in.ops[1]) | poisoned(w, in.ops[2]) | poisoned(w, in.ops[3]));
    return Step::kNext;
}

struct BitFieldExtract {
    template <class T>
    T operator()(T a, T position, T length) const {
        int pos = position & 0xff, len = length & 0xff, bits = kBits<T>;
        if (!len) return 0;
        U<T> value = pos >= bits ? 0 : U<T>(a) >> pos;
        bool sign = std::is_signed_v<T> && (U<T>(a) >> std::min(pos + len - 1, bits - 1) & 1);
        int kept = std::min(len, bits - std::min(pos, bits));
        U<T> field = kept >= bits ? ~U<T>(0) : (U<T>(1) << kept) - 1;
        return static_cast<T>(sign ? (value & field) | ~field : value & field);
    }
};

template <class T>
Step bfe(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    auto* a = source<T>(w, in.ops[1]);
    auto *b = source<uint32_t>(w, in.ops[2]), *c = source<uint32_t>(w, in.ops[3]);
    Storage<T> out[32];
    for (int l = 0; l < 32; ++l)
        out[l] = to_storage<T>(
            BitFieldExtract{}(from_storage<T>(a[l]), static_cast<T>(b[l]), static_cast<T>(c[l])));
    write<T>(w, in.ops[0], out, mask,
             poisoned(w, in.ops[1]) | poisoned(w, in.ops[2]) | poisoned(w, in.ops[3]));
    return Step::kNext;
}

template <class T>
Step bfi(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    auto *a = source<T>(w, in.ops[1]), *b = source<T>(w, in.ops[2]);
    auto *c = source<uint32_t>(w, in.ops[3]), *d = source<uint32_t>(w, in.ops[4]);
    T out[32];
    for (int l = 0; l < 32; ++l) {
        int pos = c[l] & 0xff, len = d[l] & 0xff;
        T field = len >= kBits<T> ? ~T(0) : (T(1) << len) - 1;
        field = pos >= kBits<T> ? 0 : field << pos;
        out[l] = (b[l] & ~field) | (pos >= kBits<T> ? 0 : (a[l] << pos) & field);
    }
    uint32_t poison = poisoned(w, in.ops[1]) | poisoned(w, in.ops[2]) | poisoned(w, in.ops[3]) |
                      poisoned(w, in.ops[4]);
    write<T>(w, in.ops[0], out, mask, poison);
    return Step::kNext;
}

template <class T>
Step bits_to_32(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    auto* a = source<T>(w, in.ops[1]);
    uint32_t out[32];
    for (int l = 0; l < 32; ++l) {
        T x = from_storage<T>(a[l]);
        U<T> u = U<T>(x);
        if (in.mode[0] == 0) out[l] = std::popcount(u);
        if (in.mode[0] == 1) out[l] = std::countl_zero(u);
        if (in.mode[0] == 2) {  // bfind: the highest bit that differs from the sign
            u = std::is_signed_v<T> && x < 0 ? ~u : u;
            out[l] =
                u ? (in.mode[1] ? std::countl_zero(u) : kBits<T> - 1 - std::countl_zero(u)) : ~0u;
        }
    }
    write<uint32_t>(w, in.ops[0], out, mask, poisoned(w, in.ops[1]));
    return Step::kNext;
}

// mode: left?, clamp?
Step funnel(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    auto *a = source<uint32_t>(w, in.ops[1]), *b = source<uint32_t>(w, in.ops[2]),
         *c = source<uint32_t>(w, in.ops[3]);
    uint32_t out[32];
    for (int l = 0; l < 32; ++l) {
        uint32_t n = in.mode[1] ? std::min(c[l], 32u) : c[l] & 31;
        uint64_t both = static_cast<uint64_t>(b[l]) << 32 | a[l];
        out[l] =
            in.mode[0] ? static_cast<uint32_t>(both << n >> 32) : static_cast<uint32_t>(both >> n);
        if (in.mode[0] && n == 32) out[l] = a[l];
    }
    write<uint32_t>(w, in.ops[0], out, mask,
                    poisoned(w, in.ops[1]) | poisoned(w, in.ops[2]) | poisoned(w, in.ops[3]));
    return Step::kNext;
}

// dp4a and dp2a: mode: a signed?, b signed?
Step dp4a(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    auto *a = source<uint32_t>(w, in.ops[1]), *b = source<uint32_t>(w, in.ops[2]),
         *c = source<uint32_t>(w, in.ops[3]);
    uint32_t out[32];
    for (int l = 0; l < 32; ++l) {
        int64_t sum = 0;
        for (int i = 0; i < 4; ++i) {
            int x = a[l] >> (8 * i) & 0xff, y = b[l] >> (8 * i) & 0xff;
            sum += (in.mode[0] ? static_cast<int8_t>(x) : x) *
                   (in.mode[1] ? static_cast<int8_t>(y) : y);
        }
        out[l] = static_cast<uint32_t>(sum) + c[l];
    }
    write<uint32_t>(w, in.ops[0], out, mask,
                    poisoned(w, in.ops[1]) | poisoned(w, in.ops[2]) | poisoned(w, in.ops[3]));
    return Step::kNext;
}

// mov between one register and a vector of narrower ones, either way.
Step pack(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    int parts = in.count - 1, bits = in.mode[0] / parts;
    for (int l = 0; l < 32; ++l) {
        if (!(mask >> l & 1)) continue;
        uint64_t value = 0;
        bool poison = false;
        for (int i = 0; i < parts; ++i) {
            uint64_t part = lane_bits(w, in.ops[1 + i], l);
            value |= (bits == 64 ? part : part & ((1ull << bits) - 1)) << (i * bits);
            poison |= poisoned(w, in.ops[1 + i]) >> l & 1;
        }
        set_lane(w, in.ops[0], l, value, poison);
    }
    return Step::kNext;
}
Step unpack(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    int parts = in.count - 1, bits = in.mode[0] / parts;
    for (int l = 0; l < 32; ++l) {
        if (!(mask >> l & 1)) continue;
        uint64_t value = lane_bits(w, in.ops[parts], l);
        bool poison = poisoned(w, in.ops[parts]) >> l & 1;
        for (int i = 0; i < parts; ++i)
            set_lane(w, in.ops[i], l, value >> (i * bits) & ((1ull << bits) - 1), poison);
    }
    return Step::kNext;
}

}  // namespace

bool bind_alu(const Opcode& op, Instruction& in) {
    auto t = op.last();
    auto base = op.base;
    auto is = [&](std::string_view name) { return base == name; };
    for (auto m : op.modifiers)  // roundings other than to nearest are not emitted for arithmetic
                                 // by what we run
        if (m == "rz" || m == "rm" || m == "rp" || m == "cc" || m == "sat") return false;
    bool floating = is_float(t);
    in.kind =
        floating ? (t == "f32" || t == "f64" ? Class::kFloat : Class::kHalf) : Class::kInteger;
    Handler& h = in.handler;
    if (t == "pred" && (is("and") || is("or") || is("xor") || is("not") || is("mov"))) {
        in.kind = Class::kPredicate;
        h = is("and")   ? predicate_logic<0>
            : is("or")  ? predicate_logic<1>
            : is("xor") ? predicate_logic<2>
            : is("not") ? predicate_logic<3>
                        : predicate_logic<4>;
    } else if (is("add")) {
        h = floating ? float2<FAdd>(t) : integer2<Add>(t);
    } else if (is("sub")) {
        h = floating ? float2<FSub>(t) : integer2<Sub>(t);
    } else if (is("mul") || is("mad")) {
        bool mad = is("mad");
        if (floating) {
            h = mad ? (t == "f32"   ? ternary<float, Fma>
                       : t == "f64" ? ternary<double, Fma>
                                    : nullptr)
                    : float2<FMul>(t);
        } else if (op.has("wide")) {
            if (t == "s32") h = multiply_wide<int64_t, int32_t>;
            if (t == "u32") h = multiply_wide<uint64_t, uint32_t>;
            if (t == "s16") h = multiply_wide<int32_t, int16_t>;
            if (t == "u16") h = multiply_wide<uint32_t, uint16_t>;
        } else if (op.has("hi")) {
            if (mad)
                h = integer3<MadHigh>(t);
            else
                h = t == "u64" ? binary<uint64_t, MulHighU> : integer2<MulHigh>(t);
        } else if (op.has("lo")) {
            h = mad ? integer3<MadLow>(t) : integer2<MulLow>(t);
        }
    } else if (is("fma")) {
        h = t == "f32"       ? ternary<float, Fma>
            : t == "f64"     ? ternary<double, Fma>
            : op.has("relu") ? half_ternary<HalfFmaRelu<Half>, HalfFmaRelu<Bfloat>>(t)
                             : half_ternary<HalfFma<Half>, HalfFma<Bfloat>>(t);
    } else if (is("div")) {
        h = floating ? float2<FDiv>(t) : integer2<Div>(t);
    } else if (is("rem")) {
        h = integer2<Rem>(t);
    } else if (is("min")) {
        h = floating ? (op.has("NaN") ? float2<FMinNan>(t) : float2<FMin>(t)) : integer2<Min>(t);
    } else if (is("max")) {
        h = floating ? (op.has("NaN") ? float2<FMaxNan>(t) : float2<FMax>(t)) : integer2<Max>(t);
    } else if (is("and")) {
        h = integer2<And>(t);
    } else if (is("or")) {
        h = integer2<Or>(t);
    } else if (is("xor")) {
        h = integer2<Xor>(t);
    } else if (is("not")) {
        h = integer1<Not>(t);
    } else if (is("cnot")) {
        h = integer1<Cnot>(t);
    } else if (is("neg")) {
        h = floating ? float1<FNeg>(t) : integer1<Neg>(t);
    } else if (is("abs")) {
        if (floating)
            h = float1<FAbs>(t);
        else
            h = t == "s32"   ? unary<int32_t, Abs>
                : t == "s64" ? unary<int64_t, Abs>
                : t == "s16" ? unary<int16_t, Abs>
                             : nullptr;
    } else if (is("sqrt")) {
        h = float1<Sqrt>(t);
    } else if (is("rsqrt")) {
        h = float1<Rsqrt>(t);
    } else if (is("rcp")) {
        h = float1<Rcp>(t);
    } else if (is("ex2")) {
        h = float1<Exp2>(t);
    } else if (is("lg2")) {
        h = float1<Log2>(t);
    } else if (is("sin")) {
        h = float1<Sine>(t);
    } else if (is("cos")) {
        h = float1<Cosine>(t);
    } else if (is("tanh")) {
        h = float1<Tanh>(t);
    } else if (is("shl")) {
        h = shifts<ShiftLeft>(t);
    } else if (is("shr")) {
        h = shifts<ShiftRight>(t);
    } else if (is("brev")) {
        h = integer1<Brev>(t);
    } else if (is("popc") || is("clz") || is("bfind")) {
        in.mode[0] = is("popc") ? 0 : is("clz") ? 1 : 2;
        in.mode[1] = op.has("shiftamt");
        h = t == "b32" || t == "u32"   ? bits_to_32<uint32_t>
            : t == "b64" || t == "u64" ? bits_to_32<uint64_t>
            : t == "s32"               ? bits_to_32<int32_t>
            : t == "s64"               ? bits_to_32<int64_t>
                                       : nullptr;
    } else if (is("bfe")) {
        h = t == "u32"   ? bfe<uint32_t>
            : t == "s32" ? bfe<int32_t>
            : t == "u64" ? bfe<uint64_t>
            : t == "s64" ? bfe<int64_t>
                         : nullptr;
    } else if (is("bfi")) {
        h = t == "b32" ? bfi<uint32_t> : t == "b64" ? bfi<uint64_t> : nullptr;
    } else if (is("lop3") && op.modifiers.size() == 1) {
        h = lop3;
    } else if (is("prmt") && op.modifiers.size() == 1) {
        h = prmt;
    } else if (is("shf")) {
        in.mode[0] = op.has("l");
        in.mode[1] = op.has("clamp");
        h = funnel;
    } else if (is("dp4a")) {
        in.mode[0] = op.last(1) == "s32";
        in.mode[1] = t == "s32";
        h = dp4a;
    } else if (is("setp")) {
        static const std::string_view names[] = {"eq",  "ne",  "lt",  "le",  "gt",  "ge",  "equ",
                                                 "neu", "ltu", "leu", "gtu", "geu", "num", "nan"};
        int how = -1;
        for (int i = 0; i < 14; ++i)
            if (op.modifiers[0] == names[i]) how = i;
        static const std::pair<std::string_view, int> aliases[] = {
            {"lo", kLt}, {"ls", kLe}, {"hi", kGt}, {"hs", kGe}};
        for (auto [name, value] : aliases)
            if (op.modifiers[0] == name) how = value;
        if (how < 0) return false;
        in.kind = Class::kPredicate;
        in.mode[0] = how;
        in.mode[2] = op.has("and") ? 1 : op.has("or") ? 2 : op.has("xor") ? 3 : 0;
        in.mode[1] = in.count == 4 + (in.mode[2] != 0);
        if (t == "s32") h = setp<compare_lanes<int32_t>>;
        if (t == "u32" || t == "b32") h = setp<compare_lanes<uint32_t>>;
        if (t == "s64") h = setp<compare_lanes<int64_t>>;
        if (t == "u64" || t == "b64") h = setp<compare_lanes<uint64_t>>;
        if (t == "s16") h = setp<compare_lanes<int16_t>>;
        if (t == "u16" || t == "b16") h = setp<compare_lanes<uint16_t>>;
        if (t == "f32") h = setp<compare_lanes<float>>;
        if (t == "f64") h = setp<compare_lanes<double>>;
        if (t == "f16") h = setp<compare_halves<Half>>;
        if (t == "bf16") h = setp<compare_halves<Bfloat>>;
    } else if (is("selp")) {
        in.kind = Class::kMove;
        bool is64 = t == "b64" || t == "u64" || t == "s64" || t == "f64";
        bool is16 = t == "b16" || t == "u16" || t == "s16" || t == "f16";
        h = is64 ? selp<uint64_t> : is16 ? selp<uint16_t> : selp<uint32_t>;
    } else if (is("slct")) {
        in.kind = Class::kMove;
        auto d = op.last(1);
        bool is64 = d == "b64" || d == "u64" || d == "s64" || d == "f64";
        if (t == "s32") h = is64 ? slct<uint64_t, int32_t> : slct<uint32_t, int32_t>;
        if (t == "f32") h = is64 ? slct<uint64_t, float> : slct<uint32_t, float>;
    } else if (is("mov")) {
        in.kind = Class::kMove;
        int bits = t.size() > 1 ? std::stoi(std::string(t.substr(1))) : 0;
        if (in.count > 2) {
            in.mode[0] = bits;
            h = in.ops[0].group == in.ops[1].group ? unpack : pack;
        } else {
            h = bits == 64   ? unary<uint64_t, Move>
                : bits == 16 ? unary<uint16_t, Move>
                : bits == 32 ? unary<uint32_t, Move>
                             : nullptr;
        }
    }
    return h != nullptr;
}

}  // namespace emu
