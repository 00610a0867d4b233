// What the arithmetic files share: one template that runs an operation lane by lane, the number
// formats it computes in, and the choice of an instance by the type's name.
#pragma once
#include <bit>
#include <tuple>
#include <utility>

#include "machine.h"
#include "modifiers.h"
#include "numbers.h"

namespace emu {

bool bind_integer(const Opcode&, Instruction&);
bool bind_float(const Opcode&, Instruction&);
bool bind_compare(const Opcode&, Instruction&);

template <class T>
using Unsigned = std::make_unsigned_t<T>;
template <class T>
constexpr int kBits = sizeof(T) * 8;

// out[l] = F(a[l], b[l], ...). An F with modes is made from the instruction.
template <class F, class R, class... A>
Step map(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    const F operation = [&] {
        if constexpr (std::is_constructible_v<F, const Instruction&>)
            return F(in);
        else
            return F{};
    }();
    return [&]<size_t... I>(std::index_sequence<I...>) {
        std::tuple lanes{source<A>(w, in.ops[1 + I])...};
        Storage<R> out[32];
        for (int l = 0; l < 32; ++l)
            out[l] = to_storage<R>(operation(from_storage<A>(std::get<I>(lanes)[l])...));
        write<R>(w, in.ops[0], out, mask, (poisoned(w, in.ops[1 + I]) | ...));
        return Step::kNext;
    }(std::index_sequence_for<A...>{});
}

template <class T, size_t>
using Repeat = T;
template <class F, class T, size_t... I>
constexpr Handler map_repeated(std::index_sequence<I...>) {
    return map<F, T, Repeat<T, I>...>;
}
// The handler with operands and result of one type.
template <class F, class T, size_t kOperands>
constexpr Handler map_alike = map_repeated<F, T>(std::make_index_sequence<kOperands>{});

// Both halves of 32 bits, each on its own.
template <class F>
struct Pair : F {
    using F::F;
    template <class... A>
    uint32_t operator()(A... a) const {
        auto low = F::operator()(static_cast<uint16_t>(a)...),
             high = F::operator()(static_cast<uint16_t>(a >> 16)...);
        return static_cast<uint16_t>(low) | uint32_t{static_cast<uint16_t>(high)} << 16;
    }
};

// ---- formats: what a register's bits are and the type they are computed in

template <class T>
struct Plain {
    using Bits = Storage<T>;
    using Value = T;
    static constexpr Bits kSign = Bits(1) << (kBits<T> - 1);
    static constexpr Bits kExponent = std::bit_cast<Bits>(std::numeric_limits<T>::infinity());
    static Value decode(Bits bits) { return std::bit_cast<T>(bits); }
    static Bits encode(Value value) { return std::bit_cast<Bits>(canonical(value)); }
};
template <class Format>
struct Short {
    using Bits = uint16_t;
    using Value = double;
    static constexpr Bits kSign = Format::kSign;
    static constexpr Bits kExponent = Format::kInfinityBits;
    static Value decode(Bits bits) { return Format::decode(bits); }
    static Bits encode(Value value) { return static_cast<Bits>(Format::encode(value)); }
};

// .ftz: subnormal numbers become zeros of their sign.
template <class Codec>
typename Codec::Bits flush(typename Codec::Bits bits) {
    return bits & Codec::kExponent ? bits : bits & Codec::kSign;
}

}  // namespace emu
