// Arithmetic of f32, f64, f16, bf16 and the packed halves, with rounding, flushing and clamping.
//
// Halves are computed in double and rounded once, which is exact but for fma: see fused(). The
// approximate functions are computed to the last bit, inside the error that the ISA allows them.
#include "alu.h"

namespace emu {
namespace {

// ---- operations

#define OPERATION(name, parameters, expression) \
    struct name {                               \
        template <class T>                      \
        T operator() parameters const {         \
            return expression;                  \
        }                                       \
    }
OPERATION(Add, (T a, T b), a + b);
OPERATION(Sub, (T a, T b), a - b);
OPERATION(Mul, (T a, T b), a* b);
OPERATION(Div, (T a, T b), a / b);
OPERATION(Fma, (T a, T b, T c), std::fma(a, b, c));
OPERATION(HalfFma, (T a, T b, T c), fused(a, b, c));
// One NaN gives way to the other operand; -0 is below +0.
OPERATION(Min, (T a, T b),
          std::isnan(a)   ? b
          : std::isnan(b) ? a
                          : (a == b ? (std::signbit(a) ? a : b) : (a < b ? a : b)));
OPERATION(Max, (T a, T b),
          std::isnan(a)   ? b
          : std::isnan(b) ? a
                          : (a == b ? (std::signbit(a) ? b : a) : (a > b ? a : b)));
OPERATION(Abs, (T a), std::fabs(a));
OPERATION(Neg, (T a), -a);
OPERATION(CopySign, (T a, T b), std::copysign(b, a));
OPERATION(Sqrt, (T a), std::sqrt(a));
OPERATION(Rsqrt, (T a), static_cast<T>(1.0 / std::sqrt(static_cast<double>(a))));
OPERATION(Rcp, (T a), T(1) / a);
OPERATION(Exp2, (T a), static_cast<T>(std::exp2(static_cast<double>(a))));
OPERATION(Log2, (T a), static_cast<T>(std::log2(static_cast<double>(a))));
OPERATION(Sine, (T a), static_cast<T>(std::sin(static_cast<double>(a))));
OPERATION(Cosine, (T a), static_cast<T>(std::cos(static_cast<double>(a))));
OPERATION(Tanh, (T a), static_cast<T>(std::tanh(static_cast<double>(a))));
#undef OPERATION

template <class F>
struct NanWins {
    template <class T>
    T operator()(T a, T b) const {
        return std::isnan(a) || std::isnan(b) ? std::numeric_limits<T>::quiet_NaN() : F{}(a, b);
    }
};
// .xorsign.abs: of the magnitudes, with the product's sign.
template <class F>
struct XorSign {
    template <class T>
    T operator()(T a, T b) const {
        bool negative = std::signbit(a) != std::signbit(b);
        return std::copysign(F{}(std::fabs(a), std::fabs(b)), negative ? T(-1) : T(1));
    }
};

// ---- what modifiers ask for around an operation

enum Modifier : int32_t {
    kAbsent = -1,  // no such instruction of this type
    kNone = 0,
    kNearest = 1,
    kDirected = 2,  // .rz, .rm, .rp
    kFtz = 4,
    kSat = 8,
    kRelu = 16,
    kNan = 32,
    kXorSign = 64,
    kApprox = 128,
    kFull = 256,
    kRounding = kNearest | kDirected,
    kChangeResult = kFtz | kSat | kRelu,
};

// mode: rounding, modifiers
template <class Codec, class F>
struct Exact {
    using Bits = typename Codec::Bits;
    template <class... A>
    Bits operator()(A... a) const {
        return Codec::encode(F{}(Codec::decode(static_cast<Bits>(a))...));
    }
};
template <class Codec, class F>
struct Modified {
    using Bits = typename Codec::Bits;
    using Value = typename Codec::Value;
    explicit Modified(const Instruction& in) : given(in.mode[1]) {}

    template <class... A>
    Bits operator()(A... a) const {
        Bits out = Codec::encode(clamped(F{}(Codec::decode(flushed(static_cast<Bits>(a)))...)));
        return flushed(out);
    }

  private:
    int32_t given;
    Bits flushed(Bits bits) const { return given & kFtz ? flush<Codec>(bits) : bits; }
    Value clamped(Value value) const {
        if (given & kSat) return std::isnan(value) ? 0 : std::clamp<Value>(value, 0, 1);
        if (given & kRelu) return value > 0 || std::isnan(value) ? value : 0;
        return value;
    }
};

// Loads and stores of registers stay between the two calls, so the arithmetic does too.
template <Handler kHandler>
Step directed(Warp& w, Group& g, const Instruction& in, uint32_t mask) {
    RoundingMode mode(static_cast<Round>(in.mode[0]));
    return kHandler(w, g, in, mask);
}

// ---- the choice of the instance

template <class F, class T, size_t kOperands>
Handler plain(int32_t given) {
    constexpr Handler exact = map_alike<Exact<Plain<T>, F>, Storage<T>, kOperands>,
                      modified = map_alike<Modified<Plain<T>, F>, Storage<T>, kOperands>;
    if (given & kDirected) return directed<modified>;
    return given & kChangeResult ? modified : exact;
}
template <class F, size_t kOperands>
Handler plain_of(std::string_view type, int32_t given) {
    if (type == "f32") return plain<F, float, kOperands>(given);
    return type == "f64" ? plain<F, double, kOperands>(given) : nullptr;
}

template <template <class, class> class Around, class Format, class F, size_t kOperands>
Handler half(bool pair) {
    using Operation = Around<Short<Format>, F>;
    return pair ? map_alike<Pair<Operation>, uint32_t, kOperands>
                : map_alike<Operation, uint16_t, kOperands>;
}
template <class F, size_t kOperands>
Handler half_of(std::string_view type, int32_t given) {
    bool pair = type.ends_with("x2"), bfloat = type.starts_with("b");
    if (given & kChangeResult)
        return bfloat ? half<Modified, Bfloat, F, kOperands>(pair)
                      : half<Modified, Half, F, kOperands>(pair);
    return bfloat ? half<Exact, Bfloat, F, kOperands>(pair) : half<Exact, Half, F, kOperands>(pair);
}

using Pick = Handler (*)(std::string_view type, int32_t given);

template <class F, size_t kOperands, class OfHalves = F>
Handler any_of(std::string_view type, int32_t given) {
    bool wide = type == "f32" || type == "f64";
    return wide ? plain_of<F, kOperands>(type, given) : half_of<OfHalves, kOperands>(type, given);
}
template <class F>
Handler extreme_of(std::string_view type, int32_t given) {
    if (given & kXorSign)
        return given & kNan ? any_of<XorSign<NanWins<F>>, 2>(type, given)
                            : any_of<XorSign<F>, 2>(type, given);
    return given & kNan ? any_of<NanWins<F>, 2>(type, given) : any_of<F, 2>(type, given);
}

struct Operation {
    std::string_view name;
    int operands;
    int32_t f32, f64, f16, bf16;  // the modifiers that the ISA has for each type
    Pick pick;
};
constexpr int32_t kExtreme = kNan | kXorSign;
constexpr Operation kOperations[] = {
    {"add", 2, kRounding | kFtz | kSat, kRounding, kNearest | kFtz | kSat, kNearest,
     any_of<Add, 2>},
    {"sub", 2, kRounding | kFtz | kSat, kRounding, kNearest | kFtz | kSat, kNearest,
     any_of<Sub, 2>},
    {"mul", 2, kRounding | kFtz | kSat, kRounding, kNearest | kFtz | kSat, kNearest,
     any_of<Mul, 2>},
    {"fma", 3, kRounding | kFtz | kSat, kRounding, kNearest | kFtz | kSat | kRelu, kNearest | kRelu,
     any_of<Fma, 3, HalfFma>},
    {"mad", 3, kRounding | kFtz | kSat, kRounding, kAbsent, kAbsent, plain_of<Fma, 3>},
    {"div", 2, kRounding | kFtz | kApprox | kFull, kRounding, kAbsent, kAbsent, plain_of<Div, 2>},
    {"min", 2, kFtz | kExtreme, kNone, kFtz | kExtreme, kExtreme, extreme_of<Min>},
    {"max", 2, kFtz | kExtreme, kNone, kFtz | kExtreme, kExtreme, extreme_of<Max>},
    {"abs", 1, kFtz, kNone, kFtz, kNone, any_of<Abs, 1>},
    {"neg", 1, kFtz, kNone, kFtz, kNone, any_of<Neg, 1>},
    {"copysign", 2, kNone, kNone, kAbsent, kAbsent, plain_of<CopySign, 2>},
    {"sqrt", 1, kRounding | kFtz | kApprox, kRounding, kAbsent, kAbsent, plain_of<Sqrt, 1>},
    {"rcp", 1, kRounding | kFtz | kApprox, kRounding, kAbsent, kAbsent, plain_of<Rcp, 1>},
    {"rsqrt", 1, kFtz | kApprox, kApprox, kAbsent, kAbsent, plain_of<Rsqrt, 1>},
    {"ex2", 1, kFtz | kApprox, kAbsent, kApprox, kFtz | kApprox, any_of<Exp2, 1>},
    {"lg2", 1, kFtz | kApprox, kAbsent, kAbsent, kAbsent, plain_of<Log2, 1>},
    {"sin", 1, kFtz | kApprox, kAbsent, kAbsent, kAbsent, plain_of<Sine, 1>},
    {"cos", 1, kFtz | kApprox, kAbsent, kAbsent, kAbsent, plain_of<Cosine, 1>},
    {"tanh", 1, kApprox, kAbsent, kApprox, kApprox, any_of<Tanh, 1>},
};

int32_t allowed(const Operation& operation, std::string_view type) {
    if (type == "f32") return operation.f32;
    if (type == "f64") return operation.f64;
    if (type == "f16" || type == "f16x2") return operation.f16;
    return type == "bf16" || type == "bf16x2" ? operation.bf16 : static_cast<int32_t>(kAbsent);
}

// All modifiers that the opcode has, with the direction of its rounding.
int32_t take_modifiers(Modifiers& left, Round& round) {
    constexpr std::pair<std::string_view, int32_t> names[] = {{"ftz", kFtz},       {"sat", kSat},
                                                              {"relu", kRelu},     {"NaN", kNan},
                                                              {"approx", kApprox}, {"full", kFull}};
    int32_t given = kNone;
    for (auto [name, modifier] : names)
        if (left.take(name)) given |= modifier;
    if (left.take("xorsign")) given |= left.take("abs") ? int32_t{kXorSign} : int32_t{kAbsent};
    int place = left.take_one_of({"rn", "rz", "rm", "rp"});
    if (place < 0) return given;
    round = static_cast<Round>(place);
    return given | (round == Round::kNearestEven ? kNearest : kDirected);
}

}  // namespace

bool bind_float(const Opcode& op, Instruction& in) {
    Modifiers left(op);
    auto type = left.take_last();
    auto round = Round::kNearestEven;
    int32_t given = take_modifiers(left, round);
    if (!left.none_left() || ((given & kSat) && (given & kRelu))) return false;
    for (const Operation& operation : kOperations) {
        if (operation.name != op.base) continue;
        int32_t may = allowed(operation, type);
        if (may == kAbsent || (given & ~may) || in.count != operation.operands + 1) return false;
        in.handler = operation.pick(type, given);
        in.kind = type == "f32" || type == "f64" ? Class::kFloat : Class::kHalf;
        in.mode[0] = static_cast<int32_t>(round), in.mode[1] = given;
        return true;
    }
    return false;
}

}  // namespace emu
