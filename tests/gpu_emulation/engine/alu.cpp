// Integer arithmetic, logic, bit fields and moves.
#include "alu.h"

namespace emu {
namespace {

// ---- arithmetic

// Holds every product of two T, with a third added.
template <class T>
using Wide =
    std::conditional_t<sizeof(T) == 8,
                       std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>,
                       std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>>;

template <class T>
T wrap(Wide<T> value) {
    return static_cast<T>(value);
}
template <class T>
T saturate(Wide<T> value) {
    constexpr Wide<T> low = std::numeric_limits<T>::min(), high = std::numeric_limits<T>::max();
    return static_cast<T>(std::clamp(value, low, high));
}

#define OPERATION(name, parameters, expression) \
    struct name {                               \
        template <class T>                      \
        T operator() parameters const {         \
            return expression;                  \
        }                                       \
    }
OPERATION(Add, (T a, T b), static_cast<T>(Unsigned<T>(a) + Unsigned<T>(b)));
OPERATION(Sub, (T a, T b), static_cast<T>(Unsigned<T>(a) - Unsigned<T>(b)));
OPERATION(AddSat, (T a, T b), saturate<T>(Wide<T>(a) + b));
OPERATION(SubSat, (T a, T b), saturate<T>(Wide<T>(a) - b));
OPERATION(MulLow, (T a, T b), static_cast<T>(uint64_t(a) * uint64_t(b)));
OPERATION(MadLow, (T a, T b, T c), static_cast<T>(uint64_t(a) * uint64_t(b) + uint64_t(c)));
OPERATION(MulHigh, (T a, T b), wrap<T>(Wide<T>(a) * b >> kBits<T>));
OPERATION(MadHigh, (T a, T b, T c), wrap<T>((Wide<T>(a) * b >> kBits<T>)+c));
OPERATION(MadHighSat, (T a, T b, T c), saturate<T>((Wide<T>(a) * b >> kBits<T>)+c));
// Division by zero: the ISA leaves the result unspecified; all ones is what chips give.
OPERATION(Div, (T a, T b), b == 0 ? static_cast<T>(-1) : wrap<T>(Wide<T>(a) / b));
OPERATION(Rem, (T a, T b), b == 0 ? a : wrap<T>(Wide<T>(a) % b));
OPERATION(Min, (T a, T b), b < a ? b : a);
OPERATION(Max, (T a, T b), a < b ? b : a);
OPERATION(Sad, (T a, T b, T c),
          static_cast<T>(Unsigned<T>(c) + (a < b ? Unsigned<T>(b) - Unsigned<T>(a)
                                                 : Unsigned<T>(a) - Unsigned<T>(b))));
OPERATION(And, (T a, T b), static_cast<T>(a& b));
OPERATION(Or, (T a, T b), static_cast<T>(a | b));
OPERATION(Xor, (T a, T b), static_cast<T>(a ^ b));
OPERATION(Not, (T a), static_cast<T>(~a));
OPERATION(Cnot, (T a), static_cast<T>(a == 0));
OPERATION(Neg, (T a), static_cast<T>(-Unsigned<T>(a)));
OPERATION(Abs, (T a), a < 0 ? static_cast<T>(-Unsigned<T>(a)) : a);
OPERATION(Move, (T a), a);
#undef OPERATION

template <class F>
struct Relu {
    template <class T>
    T operator()(T a, T b) const {
        return std::max<T>(F{}(a, b), 0);
    }
};

// The factors' low 24 bits; of the 48-bit product the low or the high 32.
template <bool kHigh, bool kSaturate = false>
struct Mad24 {
    template <class T>
    T operator()(T a, T b, T c = 0) const {
        auto low24 = [](T x) { return static_cast<T>(Unsigned<T>(x) << 8) >> 8; };
        Wide<T> product = Wide<T>(low24(a)) * low24(b);
        Wide<T> part = kHigh ? product >> 16 : Wide<T>(wrap<T>(product));
        return kSaturate ? saturate<T>(part + c) : wrap<T>(part + c);
    }
};

template <class Narrow, class Product>
struct MulWide {
    Product operator()(Narrow a, Narrow b, Product c = 0) const {
        return MadLow{}(Product(a), Product(b), c);
    }
};

// Sums of bytes of b with bytes (dp4a) or halves (dp2a) of a. mode: a signed, b signed, the upper
// bytes of b
template <class Signed, int kCount>
struct DotProduct {
    explicit DotProduct(const Instruction& in)
        : a_signed(in.mode[0]), b_signed(in.mode[1]), upper(in.mode[2]) {}

    uint32_t operator()(uint32_t a, uint32_t b, uint32_t c) const {
        for (int i = 0; i < kCount; ++i)
            c += static_cast<uint32_t>(part<Signed>(a, i, a_signed) *
                                       part<int8_t>(b, upper ? i + kCount : i, b_signed));
        return c;
    }

  private:
    bool a_signed, b_signed, upper;
    template <class T>
    static int part(uint32_t word, int i, bool is_signed) {
        auto bits = static_cast<Unsigned<T>>(word >> (i * kBits<T>));
        return is_signed ? static_cast<T>(bits) : bits;
    }
};

// ---- carry chains

// With what is beyond T's bits: a carry or a borrow.
struct AddCarry {
    template <class T>
    unsigned __int128 operator()(T a, T b, bool carry) const {
        return static_cast<unsigned __int128>(Unsigned<T>(a)) + Unsigned<T>(b) + carry;
    }
};
struct SubBorrow {
    template <class T>
    unsigned __int128 operator()(T a, T b, bool borrow) const {
        return static_cast<unsigned __int128>(Unsigned<T>(a)) - Unsigned<T>(b) - borrow;
    }
};
template <class Product>
struct MadCarry {
    template <class T>
    unsigned __int128 operator()(T a, T b, T c, bool carry) const {
        return AddCarry{}(Product{}(a, b), c, carry);
    }
};

// The flag CC.CF, a bit a lane, lives in the row that takes what is written to a sink `_` nowhere.
Operand carry_flag(const Warp& w) {
    return {.kind = kRegister,
            .index = w.machine->program->rows,
            .bits = 1,
            .negated = 0,
            .group = 0,
            .offset = 0};
}

// mode: takes the carry, gives it
template <class F, class T, class... A>
Step chained(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    return [&]<size_t... I>(std::index_sequence<I...>) {
        std::tuple lanes{source<A>(w, in.ops[1 + I])...};
        Operand flag = carry_flag(w);
        uint32_t taken = in.mode[0] ? predicate(w, flag) : 0, given = 0;
        uint32_t poison = (poisoned(w, in.ops[1 + I]) | ...) | (in.mode[0] ? poisoned(w, flag) : 0);
        Storage<T> out[32];
        for (int l = 0; l < 32; ++l) {
            auto sum = F{}(from_storage<A>(std::get<I>(lanes)[l])..., (taken >> l & 1) != 0);
            out[l] = static_cast<Storage<T>>(sum);
            given |= static_cast<uint32_t>(sum >> kBits<T> & 1) << l;
        }
        write<T>(w, in.ops[0], out, mask, poison);
        if (in.mode[1]) set_predicate(w, flag, given, mask, poison);
        return Step::kNext;
    }(std::index_sequence_for<A...>{});
}

// ---- bits

struct ShiftLeft {
    template <class T>
    T operator()(T a, uint32_t n) const {
        return n >= kBits<T> ? T(0) : static_cast<T>(Unsigned<T>(a) << n);
    }
};
struct ShiftRight {
    template <class T>
    T operator()(T a, uint32_t n) const {
        if (n < kBits<T>) return static_cast<T>(a >> n);
        return a < 0 ? static_cast<T>(-1) : T(0);
    }
};

// A 64-bit value shifted, of which a half is kept.
template <bool kLeft, bool kClamp>
struct Funnel {
    uint32_t operator()(uint32_t low, uint32_t high, uint32_t by) const {
        uint32_t n = kClamp ? std::min(by, 32u) : by & 31;
        uint64_t both = uint64_t{high} << 32 | low;
        return static_cast<uint32_t>(kLeft ? both << n >> 32 : both >> n);
    }
};

struct Reverse {
    template <class T>
    T operator()(T a) const {
        T out = 0;
        for (int i = 0; i < kBits<T>; ++i) out |= (a >> i & 1) << (kBits<T> - 1 - i);
        return out;
    }
};
struct PopulationCount {
    template <class T>
    uint32_t operator()(T a) const {
        return std::popcount(static_cast<Unsigned<T>>(a));
    }
};
struct LeadingZeros {
    template <class T>
    uint32_t operator()(T a) const {
        return std::countl_zero(static_cast<Unsigned<T>>(a));
    }
};
// The highest bit that differs from the sign, as its place or as the shift that brings it on top.
template <bool kShift>
struct FindHighest {
    template <class T>
    uint32_t operator()(T a) const {
        auto bits = static_cast<Unsigned<T>>(a < 0 ? ~a : a);
        int shift = std::countl_zero(bits);
        return !bits ? ~0u : kShift ? shift : kBits<T> - 1 - shift;
    }
};

template <class T>
T low_bits(int count) {
    return count >= kBits<T> ? static_cast<T>(~T(0)) : static_cast<T>((T(1) << count) - 1);
}

struct BitFieldExtract {
    template <class T>
    T operator()(T a, uint32_t position, uint32_t length) const {
        int pos = position & 0xff, len = length & 0xff;
        if (!len) return 0;
        using Bits = Unsigned<T>;
        Bits value = pos >= kBits<T> ? 0 : Bits(a) >> pos;
        bool sign = std::is_signed_v<T> && (Bits(a) >> std::min(pos + len - 1, kBits<T> - 1) & 1);
        Bits field = low_bits<Bits>(std::min(len, kBits<T> - std::min(pos, kBits<T>)));
        return static_cast<T>(sign ? (value & field) | ~field : value & field);
    }
};
struct BitFieldInsert {
    template <class T>
    T operator()(T a, T b, uint32_t position, uint32_t length) const {
        uint32_t pos = position & 0xff;
        T field = ShiftLeft{}(low_bits<T>(length & 0xff), pos);
        return (b & ~field) | (ShiftLeft{}(a, pos) & field);
    }
};

// bmsk: ones from bit a on, b of them.
template <bool kClamp>
struct BitMask {
    uint32_t operator()(uint32_t a, uint32_t b) const {
        if constexpr (kClamp)
            return ShiftLeft{}(low_bits<uint32_t>(static_cast<int>(std::min(b, 32u))), a);
        return low_bits<uint32_t>(b & 31) << (a & 31);
    }
};
// szext: the low b bits, extended by their sign or by zeros.
template <bool kClamp>
struct Extend {
    template <class T>
    T operator()(T a, uint32_t b) const {
        if (kClamp && b >= 32) return a;
        return BitFieldExtract{}(a, 0, b & 31);
    }
};

struct Logic3 {
    uint32_t operator()(uint32_t a, uint32_t b, uint32_t c, uint32_t table) const {
        uint32_t out = 0;
        for (uint32_t i = 0; i < 8; ++i) {
            uint32_t term = (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
            out |= term & -(table >> i & 1);
        }
        return out;
    }
};

// Each digit of the selector names a byte of b:a, its top bit asks for that byte's sign.
uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
    uint64_t bytes = uint64_t{b} << 32 | a;
    uint32_t out = 0;
    for (int i = 0; i < 4; ++i) {
        uint32_t select = selector >> (4 * i) & 15, byte = bytes >> (8 * (select & 7)) & 0xff;
        if (select & 8) byte = byte & 0x80 ? 0xff : 0;
        out |= byte << (8 * i);
    }
    return out;
}
struct Permute {
    uint32_t operator()(uint32_t a, uint32_t b, uint32_t c) const { return permute(a, b, c); }
};
// The named forms: two bits of c choose the selector. mode: form
struct NamedPermute {
    explicit NamedPermute(const Instruction& in) : selectors(kSelectors[in.mode[0]]) {}
    uint32_t operator()(uint32_t a, uint32_t b, uint32_t c) const {
        return permute(a, b, selectors[c & 3]);
    }

  private:
    const uint16_t* selectors;
    static constexpr uint16_t kSelectors[6][4] = {{0x3210, 0x4321, 0x5432, 0x6543},   // f4e
                                                  {0x5670, 0x6701, 0x7012, 0x0123},   // b4e
                                                  {0x0000, 0x1111, 0x2222, 0x3333},   // rc8
                                                  {0x3210, 0x3211, 0x3222, 0x3333},   // ecl
                                                  {0x0000, 0x1110, 0x2210, 0x3210},   // ecr
                                                  {0x1010, 0x3232, 0x1010, 0x3232}};  // rc16
};

// ---- predicates

struct PredicateAnd {
    static uint32_t value(uint32_t a, uint32_t b) { return a & b; }
    static uint32_t decides(uint32_t a) { return ~a; }
};
struct PredicateOr {
    static uint32_t value(uint32_t a, uint32_t b) { return a | b; }
    static uint32_t decides(uint32_t a) { return a; }
};
struct PredicateXor {
    static uint32_t value(uint32_t a, uint32_t b) { return a ^ b; }
    static uint32_t decides(uint32_t) { return 0; }
};
template <class F>
Step predicate_logic(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    uint32_t a = predicate(w, in.ops[1]), bad_a = poisoned(w, in.ops[1]);
    uint32_t b = predicate(w, in.ops[2]), bad_b = poisoned(w, in.ops[2]);
    // one operand may decide whatever the other is
    uint32_t decided = (F::decides(a) & ~bad_a) | (F::decides(b) & ~bad_b);
    set_predicate(w, in.ops[0], F::value(a, b), mask, (bad_a | bad_b) & ~decided);
    return Step::kNext;
}
template <bool kNot>
Step predicate_move(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    uint32_t a = predicate(w, in.ops[1]);
    set_predicate(w, in.ops[0], kNot ? ~a : a, mask, poisoned(w, in.ops[1]));
    return Step::kNext;
}

bool bind_predicate(const Opcode& op, Instruction& in) {
    if (op.modifiers.size() != 1 || op.last() != "pred") return false;
    in.kind = Class::kPredicate;
    in.handler = op.base == "and"   ? predicate_logic<PredicateAnd>
                 : op.base == "or"  ? predicate_logic<PredicateOr>
                 : op.base == "xor" ? predicate_logic<PredicateXor>
                 : op.base == "not" ? predicate_move<true>
                 : op.base == "mov" ? predicate_move<false>
                                    : nullptr;
    bool one = op.base == "not" || op.base == "mov";
    return in.handler && in.count == (one ? 2 : 3);
}

// ---- moves

// mov between one register and a vector of narrower ones, either way. mode: bits
Step pack(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    int parts = in.count - 1, bits = in.mode[0] / parts;
    for (int l = 0; l < 32; ++l) {
        if (!(mask >> l & 1)) continue;
        uint64_t value = 0;
        bool poison = false;
        for (int i = 0; i < parts; ++i) {
            value |= (lane_bits(w, in.ops[1 + i], l) & low_bits<uint64_t>(bits)) << (i * bits);
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
            set_lane(w, in.ops[i], l, value >> (i * bits) & low_bits<uint64_t>(bits), poison);
    }
    return Step::kNext;
}

// ---- the choice of the instance

struct Type {
    char kind = 0;  // u, s, b, f
    int bits = 0;
};
Type type_of(std::string_view name) {
    for (auto [text, bits] : {std::pair<std::string_view, int>{"16", 16}, {"32", 32}, {"64", 64}})
        if (name.size() == 3 && name.substr(1) == text) return {name[0], bits};
    return {};
}

// make(T{}) for the type if it is of one of the kinds; b counts as unsigned.
template <class Make>
Handler with_type(std::string_view name, std::string_view kinds, Make make) {
    Type type = type_of(name);
    if (!type.kind || kinds.find(type.kind) == kinds.npos) return nullptr;
    bool is_signed = type.kind == 's';
    if (type.bits == 16) return is_signed ? make(int16_t{}) : make(uint16_t{});
    if (type.bits == 32) return is_signed ? make(int32_t{}) : make(uint32_t{});
    return is_signed ? make(int64_t{}) : make(uint64_t{});
}
template <class F, size_t kOperands>
Handler alike(std::string_view type, std::string_view kinds) {
    return with_type(type, kinds, []<class T>(T) -> Handler { return map_alike<F, T, kOperands>; });
}
template <class F>
Handler shift(std::string_view type, std::string_view kinds) {
    return with_type(type, kinds, []<class T>(T) -> Handler { return map<F, T, T, uint32_t>; });
}
template <class F>
Handler counted(std::string_view type, std::string_view kinds) {
    return with_type(type, kinds, []<class T>(T) -> Handler { return map<F, uint32_t, T>; });
}
template <class F>
Handler extract(std::string_view type, std::string_view kinds) {
    return with_type(type, kinds,
                     []<class T>(T) -> Handler { return map<F, T, T, uint32_t, uint32_t>; });
}
template <class F>
Handler insert(std::string_view type, std::string_view kinds) {
    return with_type(type, kinds,
                     []<class T>(T) -> Handler { return map<F, T, T, T, uint32_t, uint32_t>; });
}
// F on halves as T.
template <class F, class T>
struct OfHalf {
    uint16_t operator()(uint16_t a, uint16_t b) const {
        return static_cast<uint16_t>(F{}(static_cast<T>(a), static_cast<T>(b)));
    }
};
template <class F>
Handler packed(std::string_view type) {
    if (type == "s16x2") return map_alike<Pair<OfHalf<F, int16_t>>, uint32_t, 2>;
    return type == "u16x2" ? map_alike<Pair<OfHalf<F, uint16_t>>, uint32_t, 2> : nullptr;
}

// Those without modifiers: name, operands, kinds and narrowest of their types, instance.
struct Unmodified {
    std::string_view name;
    int operands;
    std::string_view kinds;
    int least_bits;
    Handler (*pick)(std::string_view type, std::string_view kinds);
};
constexpr Unmodified kUnmodified[] = {
    {"div", 2, "us", 16, alike<Div, 2>},
    {"rem", 2, "us", 16, alike<Rem, 2>},
    {"sad", 3, "us", 16, alike<Sad, 3>},
    {"and", 2, "b", 16, alike<And, 2>},
    {"or", 2, "b", 16, alike<Or, 2>},
    {"xor", 2, "b", 16, alike<Xor, 2>},
    {"not", 1, "b", 16, alike<Not, 1>},
    {"cnot", 1, "b", 16, alike<Cnot, 1>},
    {"neg", 1, "s", 16, alike<Neg, 1>},
    {"abs", 1, "s", 16, alike<Abs, 1>},
    {"shl", 2, "b", 16, shift<ShiftLeft>},
    {"shr", 2, "bus", 16, shift<ShiftRight>},
    {"brev", 1, "b", 32, alike<Reverse, 1>},
    {"popc", 1, "b", 32, counted<PopulationCount>},
    {"clz", 1, "b", 32, counted<LeadingZeros>},
    {"bfe", 3, "us", 32, extract<BitFieldExtract>},
    {"bfi", 4, "b", 32, insert<BitFieldInsert>},
};

bool bind_unmodified(const Opcode& op, Instruction& in) {
    for (const Unmodified& entry : kUnmodified)
        if (entry.name == op.base && op.modifiers.size() == 1 &&
            type_of(op.last()).bits >= entry.least_bits && in.count == entry.operands + 1)
            in.handler = entry.pick(op.last(), entry.kinds);
    return in.handler;
}

// add, addc, sub, subc, mad, madc with a carry.
bool bind_chain(const Opcode& op, Instruction& in) {
    Modifiers left(op);
    bool takes = op.base.ends_with('c'), gives = left.take("cc");
    auto base = op.base.substr(0, 3);
    if (op.base.size() != 3u + takes || !(takes || gives)) return false;
    in.mode[0] = takes, in.mode[1] = gives;
    auto type = left.take_last();
    if (type_of(type).bits < 32) return false;
    int part = base == "mad" ? left.take_one_of({"lo", "hi"}) : -1;
    auto two = [&]<class F>(F) {
        return with_type(type, "us", []<class T>(T) -> Handler { return chained<F, T, T, T>; });
    };
    auto three = [&]<class F>(F) {
        return with_type(type, "us", []<class T>(T) -> Handler { return chained<F, T, T, T, T>; });
    };
    in.handler = base == "add"   ? two(AddCarry{})
                 : base == "sub" ? two(SubBorrow{})
                 : part == 0     ? three(MadCarry<MulLow>{})
                 : part == 1     ? three(MadCarry<MulHigh>{})
                                 : nullptr;
    return in.handler && left.none_left() && in.count == (base == "mad" ? 4 : 3);
}

bool bind_add(const Opcode& op, Instruction& in) {
    Modifiers left(op);
    bool add = op.base == "add", saturating = left.take("sat");
    auto type = left.take_last();
    if (!left.none_left() || in.count != 3 || (saturating && type != "s32")) return false;
    if (saturating)
        in.handler = add ? map_alike<AddSat, int32_t, 2> : map_alike<SubSat, int32_t, 2>;
    else if (type.ends_with("x2"))
        in.handler = add ? packed<Add>(type) : nullptr;
    else
        in.handler = add ? alike<Add, 2>(type, "us") : alike<Sub, 2>(type, "us");
    return in.handler;
}

template <class F>
Handler extreme(std::string_view type, bool relu) {
    if (!relu) return type.ends_with("x2") ? packed<F>(type) : alike<F, 2>(type, "us");
    if (type == "s32") return map_alike<Relu<F>, int32_t, 2>;
    return type == "s16x2" ? packed<Relu<F>>(type) : nullptr;
}
bool bind_extreme(const Opcode& op, Instruction& in) {
    Modifiers left(op);
    bool relu = left.take("relu");
    auto type = left.take_last();
    in.handler = op.base == "min" ? extreme<Min>(type, relu) : extreme<Max>(type, relu);
    return in.handler && left.none_left() && in.count == 3;
}

Handler multiply_wide(std::string_view type, bool add) {
    auto make = [&]<class Narrow, class Product>(Narrow, Product) -> Handler {
        using F = MulWide<Narrow, Product>;
        return add ? Handler{map<F, Product, Narrow, Narrow, Product>}
                   : map<F, Product, Narrow, Narrow>;
    };
    if (type == "s16") return make(int16_t{}, int32_t{});
    if (type == "u16") return make(uint16_t{}, uint32_t{});
    if (type == "s32") return make(int32_t{}, int64_t{});
    return type == "u32" ? make(uint32_t{}, uint64_t{}) : nullptr;
}

bool bind_multiply(const Opcode& op, Instruction& in) {
    Modifiers left(op);
    auto type = left.take_last();
    bool add = op.base == "mad", saturating = left.take("sat");
    switch (left.take_one_of({"lo", "hi", "wide"})) {
        case 0:
            in.handler = add ? alike<MadLow, 3>(type, "us") : alike<MulLow, 2>(type, "us");
            break;
        case 1:
            in.handler = saturating ? map_alike<MadHighSat, int32_t, 3>
                         : add      ? alike<MadHigh, 3>(type, "us")
                                    : alike<MulHigh, 2>(type, "us");
            if (saturating && (type != "s32" || !add)) return false;
            saturating = false;
            break;
        case 2: in.handler = multiply_wide(type, add); break;
    }
    return in.handler && !saturating && left.none_left() && in.count == (add ? 4 : 3);
}

bool bind_multiply24(const Opcode& op, Instruction& in) {
    Modifiers left(op);
    auto type = left.take_last();
    size_t operands = op.base == "mad24" ? 3 : 2;
    bool high = left.take("hi"), low = left.take("lo"), saturating = left.take("sat");
    if (high == low || !left.none_left() || type_of(type).bits != 32) return false;
    if (saturating && (type != "s32" || low || operands == 2)) return false;
    auto make = [&]<class F>(F) {
        return operands == 3 ? alike<F, 3>(type, "us") : alike<F, 2>(type, "us");
    };
    in.handler = saturating ? make(Mad24<true, true>{})
                 : high     ? make(Mad24<true>{})
                            : make(Mad24<false>{});
    return in.handler && in.count == static_cast<int>(operands) + 1;
}

bool bind_dot_product(const Opcode& op, Instruction& in) {
    Modifiers left(op);
    auto b = left.take_last(), a = left.take_last();
    bool bytes = op.base == "dp4a";
    if ((a != "s32" && a != "u32") || (b != "s32" && b != "u32")) return false;
    int half = bytes ? 0 : left.take_one_of({"lo", "hi"});
    in.mode[0] = a == "s32", in.mode[1] = b == "s32", in.mode[2] = half;
    in.handler = bytes ? map_alike<DotProduct<int8_t, 4>, uint32_t, 3>
                       : map_alike<DotProduct<int16_t, 2>, uint32_t, 3>;
    return half >= 0 && left.none_left() && in.count == 4;
}

// prmt.b32{.mode}: the type stands first.
bool bind_permute(const Opcode& op, Instruction& in) {
    Modifiers left(op);
    if (left.take_first() != "b32" || in.count != 4) return false;
    in.mode[0] = left.take_one_of({"f4e", "b4e", "rc8", "ecl", "ecr", "rc16"});
    in.handler =
        in.mode[0] < 0 ? map_alike<Permute, uint32_t, 3> : map_alike<NamedPermute, uint32_t, 3>;
    return left.none_left();
}

// Those whose mode is a word of its own.
bool bind_bits(const Opcode& op, Instruction& in) {
    Modifiers left(op);
    auto type = left.take_last();
    auto is = [&](std::string_view name, int count) {
        return op.base == name && in.count == count;
    };
    if (is("bfind", 2) && type_of(type).bits >= 32) {
        in.handler = left.take("shiftamt") ? counted<FindHighest<true>>(type, "us")
                                           : counted<FindHighest<false>>(type, "us");
    } else if (is("lop3", 5) && type == "b32") {
        in.handler = map_alike<Logic3, uint32_t, 4>;
    } else if (is("shf", 4) && type == "b32") {
        bool left_way = left.take("l"), clamp = left.take("clamp");
        if (left_way == left.take("r") || clamp == left.take("wrap")) return false;
        constexpr Handler handlers[2][2] = {{map_alike<Funnel<false, false>, uint32_t, 3>,
                                             map_alike<Funnel<false, true>, uint32_t, 3>},
                                            {map_alike<Funnel<true, false>, uint32_t, 3>,
                                             map_alike<Funnel<true, true>, uint32_t, 3>}};
        in.handler = handlers[left_way][clamp];
    } else if (is("bmsk", 3) && type == "b32") {
        bool clamp = left.take("clamp");
        if (clamp == left.take("wrap")) return false;
        in.handler =
            clamp ? map_alike<BitMask<true>, uint32_t, 2> : map_alike<BitMask<false>, uint32_t, 2>;
    } else if (is("szext", 3) && type_of(type).bits == 32) {
        bool clamp = left.take("clamp");
        if (clamp == left.take("wrap")) return false;
        in.handler = clamp ? shift<Extend<true>>(type, "us") : shift<Extend<false>>(type, "us");
    }
    return in.handler && left.none_left();
}

bool bind_move(const Opcode& op, Instruction& in) {
    Type type = type_of(op.last());
    if (op.modifiers.size() != 1 || !type.bits || in.count < 2) return false;
    in.kind = Class::kMove;
    if (in.count == 2) {
        in.handler = alike<Move, 1>(op.last(), "busf");
    } else if (in.count == 3 || in.count == 5) {
        in.mode[0] = type.bits;
        in.handler = in.ops[0].group == in.ops[1].group ? unpack : pack;
    }
    return in.handler;
}

}  // namespace

bool bind_integer(const Opcode& op, Instruction& in) {
    auto is = [&](auto... names) { return ((op.base == names) || ...); };
    in.kind = Class::kInteger;
    if (is("mov")) return bind_predicate(op, in) || bind_move(op, in);
    if (is("and", "or", "xor", "not")) return bind_predicate(op, in) || bind_unmodified(op, in);
    if (op.has("cc") || is("addc", "subc", "madc")) return bind_chain(op, in);
    if (is("add", "sub")) return bind_add(op, in);
    if (is("min", "max")) return bind_extreme(op, in);
    if (is("mul", "mad")) return bind_multiply(op, in);
    if (is("mul24", "mad24")) return bind_multiply24(op, in);
    if (is("dp4a", "dp2a")) return bind_dot_product(op, in);
    if (is("prmt")) return bind_permute(op, in);
    return bind_unmodified(op, in) || bind_bits(op, in);
}

bool bind_alu(const Opcode& op, Instruction& in) {
    for (auto binder : {bind_float, bind_compare, bind_integer}) {
        in.handler = nullptr;
        std::fill(std::begin(in.mode), std::end(in.mode), 0);
        if (binder(op, in)) return true;
    }
    return false;
}

}  // namespace emu
