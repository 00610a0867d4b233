// ld, st, ldmatrix, stmatrix, atom, red, cvta: all state spaces and vector widths, with their
// counters.
//
//   shared memory: 32 banks of 4 bytes. A request of 4-byte lanes is one phase, of 8 bytes two
//   (half warps), of 16 bytes four (quarter warps); ldmatrix one phase per 8 x 8 matrix. A phase
//   takes as many wavefronts as the fullest bank has distinct words; the least possible is
//   ceil(distinct words / 32).
#include <algorithm>
#include <bit>
#include <cmath>

#include "machine.h"
#include "numbers.h"

namespace emu {

enum Space : int32_t {
    kGeneric,
    kGlobalSpace,
    kSharedSpace,
    kLocalSpace,
    kParamSpace,
    kConstSpace
};

// Adds the wavefronts of one phase: lanes' addresses of `size` bytes each.
void count_phase(const uint32_t* at, int n, uint32_t size, uint64_t& wavefronts, uint64_t& ideal) {
    uint32_t words[256];
    int count = 0;
    for (int i = 0; i < n; ++i)
        for (uint32_t b = at[i] / 4; b <= (at[i] + size - 1) / 4; ++b) words[count++] = b;
    std::sort(words, words + count);
    count = static_cast<int>(std::unique(words, words + count) - words);
    int bank[32] = {}, most = 0;
    for (int i = 0; i < count; ++i) most = std::max(most, ++bank[words[i] & 31]);
    wavefronts += most;
    ideal += (count + 31) / 32;
}

void count_shared(const uint32_t* at, uint32_t mask, uint32_t size, uint64_t& wavefronts,
                  uint64_t& ideal) {
    int lanes = size <= 4 ? 32 : size == 8 ? 16 : 8;
    for (int first = 0; first < 32; first += lanes) {
        uint32_t list[32];
        int n = 0;
        for (int l = first; l < first + lanes; ++l)
            if (mask >> l & 1) list[n++] = at[l];
        if (n) count_phase(list, n, size, wavefronts, ideal);
    }
}

namespace {

Space window(uint64_t& at) {
    if (at >= kGlobal || at < kWindow) return kGlobalSpace;
    Space s = at < kLocalWindow ? kSharedSpace : at < kParamWindow ? kLocalSpace : kParamSpace;
    at &= kWindow - 1;
    return s;
}

uint64_t load_bits(const uint8_t* p, int size) {
    uint64_t value = 0;
    std::memcpy(&value, p, size);
    return value;
}

uint64_t sign_extend(uint64_t value, int size) {
    int shift = 64 - 8 * size;
    return static_cast<uint64_t>(static_cast<int64_t>(value << shift) >> shift);
}

void check_local(Warp& w, int lane, uint64_t at, uint64_t size) {
    uint64_t have = w.machine->program->local_bytes;
    if (at % size) w.fault("misaligned local address", lane);
    if (at >= have || size > have - at)
        w.fault("local address out of bounds: byte " + std::to_string(at) + " of " +
                    std::to_string(have),
                lane);
}

// mode: space, element bytes, elements, signed, with an order
Step load(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    int size = in.mode[1], n = in.mode[2], total = size * n;
    const Operand& where = in.ops[n];
    if (uint32_t bad = poisoned(w, where) & mask)
        w.fault("address is uninitialised", std::countr_zero(bad));
    uint64_t global[32];
    uint32_t shared[32], global_mask = 0, shared_mask = 0;
    for (int l = 0; l < 32; ++l) {
        if (!(mask >> l & 1)) continue;
        uint64_t at = address(w, where, l);
        auto space = static_cast<Space>(in.mode[0]);
        if (space == kGeneric) space = window(at);
        const uint8_t* p;
        const uint8_t* shadow = nullptr;
        uint64_t unwritten = 0;
        if (space == kGlobalSpace || space == kConstSpace) {
            check_aligned(w, l, at, total);
            if (in.mode[4]) acquire(w, at);
            p = global_read(w, l, at, total, &unwritten);
            global[l] = at, global_mask |= 1u << l;
        } else if (space == kSharedSpace) {
            check_shared(w, l, at, total, total);
            shared_read(w, l, static_cast<uint32_t>(at), total);
            p = w.block->shared.data() + at, shadow = w.block->poison.data() + at;
            shared[l] = static_cast<uint32_t>(at), shared_mask |= 1u << l;
        } else if (space == kLocalSpace) {
            check_local(w, l, at, total);
            size_t i = l * static_cast<size_t>(w.machine->program->local_bytes) + at;
            p = w.local.data() + i, shadow = w.local_poison.data() + i;
        } else {
            if (at + total > w.machine->params.size())
                w.fault("parameter address out of bounds", l);
            p = w.machine->params.data() + at;
        }
        for (int e = 0; e < n; ++e) {
            uint64_t value = load_bits(p + e * size, size);
            bool poison = unwritten >> (e * size) & ((1ull << size) - 1);
            if (shadow)
                for (int i = 0; i < size; ++i) poison |= shadow[e * size + i];
            set_lane(w, in.ops[e], l, in.mode[3] ? sign_extend(value, size) : value, poison);
        }
    }
    Counters& c = w.machine->counters;
    if (global_mask) count_global(w, global, global_mask, total, false);
    if (shared_mask) {
        count_shared(shared, shared_mask, total, c.shared_wavefronts[0], c.shared_ideal[0]);
        c.shared_bytes[0] += static_cast<uint64_t>(std::popcount(shared_mask)) * total;
    }
    return Step::kNext;
}

Step store(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    int size = in.mode[1], n = in.mode[2], total = size * n;
    const Operand& where = in.ops[0];
    if (uint32_t bad = poisoned(w, where) & mask)
        w.fault("address is uninitialised", std::countr_zero(bad));
    uint64_t global[32];
    uint32_t shared[32], global_mask = 0, shared_mask = 0;
    for (int l = 0; l < 32; ++l) {
        if (!(mask >> l & 1)) continue;
        uint64_t at = address(w, where, l);
        auto space = static_cast<Space>(in.mode[0]);
        if (space == kGeneric) space = window(at);
        uint8_t *p, *shadow = nullptr, values[64];
        for (int e = 0; e < n; ++e) {
            uint64_t value = lane_bits(w, in.ops[1 + e], l);
            std::memcpy(values + e * size, &value, size);
        }
        if (space == kGlobalSpace) {
            check_aligned(w, l, at, total);
            p = global_write(w, l, at, total, values);
            global[l] = at, global_mask |= 1u << l;
        } else if (space == kSharedSpace) {
            check_shared(w, l, at, total, total);
            shared_write(w, l, static_cast<uint32_t>(at), total, values);
            p = w.block->shared.data() + at, shadow = w.block->poison.data() + at;
            shared[l] = static_cast<uint32_t>(at), shared_mask |= 1u << l;
        } else if (space == kLocalSpace) {
            check_local(w, l, at, total);
            size_t i = l * static_cast<size_t>(w.machine->program->local_bytes) + at;
            p = w.local.data() + i, shadow = w.local_poison.data() + i;
        } else {
            w.fault("store to parameters", l);
        }
        for (int e = 0; e < n; ++e) {
            bool poison = poisoned(w, in.ops[1 + e]) >> l & 1;
            if (poison && !shadow) w.fault("an uninitialised value is stored to global memory", l);
            if (shadow) std::memset(shadow + e * size, poison, size);
        }
        std::memcpy(p, values, total);
        if (in.mode[4] && space == kGlobalSpace) release(w, at);
    }
    Counters& c = w.machine->counters;
    if (global_mask) count_global(w, global, global_mask, total, true);
    if (shared_mask) {
        count_shared(shared, shared_mask, total, c.shared_wavefronts[1], c.shared_ideal[1]);
        c.shared_bytes[1] += static_cast<uint64_t>(std::popcount(shared_mask)) * total;
    }
    return Step::kNext;
}

// ldmatrix and stmatrix .m8n8 .b16: lanes 8i..8i+7 name the rows of matrix i; lane l holds row l /
// 4, elements 2 (l % 4) and the next (.trans: column l / 4). mode: matrices, transposed, storing
Step matrix(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    int n = in.mode[0];
    bool transposed = in.mode[1], storing = in.mode[2];
    const Operand& where = in.ops[storing ? 0 : n];
    const Operand* regs = in.ops + (storing ? 1 : 0);
    if (mask != ~0u) w.fault("ldmatrix/stmatrix with only some lanes of the warp");
    Block& b = *w.block;
    Counters& c = w.machine->counters;
    for (int i = 0; i < n; ++i) {
        uint32_t rows[8];
        for (int r = 0; r < 8; ++r) {
            int lane = 8 * i + r;
            if (poisoned(w, where) >> lane & 1) w.fault("address is uninitialised", lane);
            uint64_t at = address(w, where, lane);
            if (in.mode[3] && window(at) != kSharedSpace) w.fault("not a shared address", lane);
            check_shared(w, lane, at, 16, 16);
            rows[r] = static_cast<uint32_t>(at);
            if (storing)
                shared_write(w, lane, rows[r], 16);
            else
                shared_read(w, lane, rows[r], 16);
        }
        count_phase(rows, 8, 16, c.ldmatrix_wavefronts, c.ldmatrix_ideal);
        for (int l = 0; l < 32; ++l) {
            uint32_t value = 0;
            bool poison = false;
            uint64_t out = storing ? lane_bits(w, regs[i], l) : 0;
            bool bad = storing && (poisoned(w, regs[i]) >> l & 1);
            for (int j = 0; j < 2; ++j) {
                int row = transposed ? 2 * (l % 4) + j : l / 4,
                    column = transposed ? l / 4 : 2 * (l % 4) + j;
                uint32_t at = rows[row] + 2 * column;
                if (storing) {
                    auto half = static_cast<uint16_t>(out >> (16 * j));
                    std::memcpy(&b.shared[at], &half, 2);
                    b.poison[at] = b.poison[at + 1] = bad;
                } else {
                    value |= static_cast<uint32_t>(load_bits(&b.shared[at], 2)) << (16 * j);
                    poison |= b.poison[at] | b.poison[at + 1];
                }
            }
            if (!storing) set_lane(w, regs[i], l, value, poison);
        }
    }
    return Step::kNext;
}

enum AtomicOp : int32_t { kAdd, kMin, kMax, kAnd, kOr, kXor, kExch, kCas, kInc, kDec };
enum AtomicType : int32_t {
    kBits,
    kSigned,
    kFloat,
    kHalfType,
    kBfloatType,
    kHalfPair,
    kBfloatPair
};

uint64_t combine(int op, int type, int size, uint64_t old, uint64_t value, uint64_t second) {
    auto halves = [&](auto format, uint64_t a, uint64_t b) -> uint64_t {
        using H = decltype(format);
        double x = H::decode(static_cast<uint32_t>(a & 0xffff)),
               y = H::decode(static_cast<uint32_t>(b & 0xffff));
        return H::encode(op == kAdd ? x + y : op == kMin ? std::fmin(x, y) : std::fmax(x, y));
    };
    switch (type) {
        case kFloat:
            if (op != kAdd) break;
            if (size == 4)
                return to_storage(canonical(from_storage<float>(static_cast<uint32_t>(old)) +
                                            from_storage<float>(static_cast<uint32_t>(value))));
            return to_storage(canonical(from_storage<double>(old) + from_storage<double>(value)));
        case kHalfType: return halves(Half{}, old, value);
        case kBfloatType: return halves(Bfloat{}, old, value);
        case kHalfPair:
            return halves(Half{}, old, value) | halves(Half{}, old >> 16, value >> 16) << 16;
        case kBfloatPair:
            return halves(Bfloat{}, old, value) | halves(Bfloat{}, old >> 16, value >> 16) << 16;
        default: break;
    }
    auto s = [&](uint64_t x) { return static_cast<int64_t>(sign_extend(x, size)); };
    switch (op) {
        case kAdd: return old + value;
        case kMin:
            return type == kSigned ? (s(old) < s(value) ? old : value) : std::min(old, value);
        case kMax:
            return type == kSigned ? (s(old) > s(value) ? old : value) : std::max(old, value);
        case kAnd: return old & value;
        case kOr: return old | value;
        case kXor: return old ^ value;
        case kExch: return value;
        case kCas: return old == value ? second : old;
        case kInc: return old >= value ? 0 : old + 1;
        default: return old == 0 || old > value ? value : old - 1;
    }
}

// mode: space, bytes, operation, type, elements, has a destination. Lane by lane; every atomic
// orders what was before it with what follows one that reads it (as if acquire and release: weaker
// orders are not told apart).
Step atomic(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    int size = in.mode[1], n = in.mode[4], first = in.mode[5] ? n : 0;
    const Operand& where = in.ops[first];
    if (uint32_t bad = poisoned(w, where) & mask)
        w.fault("address is uninitialised", std::countr_zero(bad));
    uint64_t global[32];
    uint32_t global_mask = 0;
    w.tick();
    for (int l = 0; l < 32; ++l) {
        if (!(mask >> l & 1)) continue;
        uint64_t at = address(w, where, l);
        auto space = static_cast<Space>(in.mode[0]);
        if (space == kGeneric) space = window(at);
        uint64_t total = static_cast<uint64_t>(size) * n;
        uint8_t *p, *shadow = nullptr;
        if (space == kSharedSpace) {
            check_shared(w, l, at, total, total);
            p = w.block->shared.data() + at, shadow = w.block->poison.data() + at;
            Clocks& seen = w.block->released[at];
            w.clock.join(seen);
            shared_atomic(w, l, static_cast<uint32_t>(at), size * n);
            seen.join(w.clock);
        } else {
            check_aligned(w, l, at, total);
            acquire(w, at);
            p = global_at(w, l, at, total, true);
            uint64_t unwritten;
            global_read(w, l, at, total, &unwritten);
            if (unwritten) w.fault("atomic on uninitialised global memory", l);
            global[l] = at, global_mask |= 1u << l;
            release(w, at);
        }
        for (int e = 0; e < n; ++e) {
            const Operand& value = in.ops[first + 1 + e];
            uint32_t second = in.mode[2] == kCas ? poisoned(w, in.ops[first + 2]) : 0;
            if ((poisoned(w, value) | second) >> l & 1)
                w.fault("an uninitialised value goes into an atomic operation", l);
            if (shadow && shared_poison(w, static_cast<uint32_t>(at + e * size), size))
                w.fault("atomic on uninitialised shared memory", l);
            uint64_t old = load_bits(p + e * size, size);
            uint64_t fresh = combine(in.mode[2], in.mode[3], size, old, lane_bits(w, value, l),
                                     in.mode[2] == kCas ? lane_bits(w, in.ops[first + 2], l) : 0);
            std::memcpy(p + e * size, &fresh, size);
            if (in.mode[5]) set_lane(w, in.ops[e], l, old, false);
        }
    }
    w.tick();
    w.machine->counters.atomics += std::popcount(mask);
    if (global_mask) count_global(w, global, global_mask, size * n, true);
    return Step::kNext;
}

// cvta adds the space's window, cvta.to takes it off. mode: window index (0 for global), to
Step cvta(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    uint64_t base = in.mode[0] * kWindow;
    for (int l = 0; l < 32; ++l)
        if (mask >> l & 1) {
            uint64_t value = lane_bits(w, in.ops[1], l) + in.ops[1].offset;
            set_lane(w, in.ops[0], l, in.mode[1] ? value - base : value + base,
                     poisoned(w, in.ops[1]) >> l & 1);
        }
    return Step::kNext;
}

Step isspacep(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    uint32_t out = 0;
    for (int l = 0; l < 32; ++l) {
        uint64_t at = lane_bits(w, in.ops[1], l);
        out |= static_cast<uint32_t>(window(at) == in.mode[0]) << l;
    }
    set_predicate(w, in.ops[0], out, mask, poisoned(w, in.ops[1]));
    return Step::kNext;
}

Step nothing(Warp&, Group&, const Instruction&, uint32_t) { return Step::kNext; }

int space_of(const Opcode& op) {
    for (auto m : op.modifiers) {
        if (m == "global") return kGlobalSpace;
        if (m.substr(0, 6) == "shared") return m == "shared::cluster" ? -1 : kSharedSpace;
        if (m == "local") return kLocalSpace;
        if (m.substr(0, 5) == "param") return kParamSpace;
        if (m == "const") return kConstSpace;
    }
    return kGeneric;
}

int bytes_of(std::string_view t) {
    static const std::pair<std::string_view, int> names[] = {
        {"f16", 2}, {"bf16", 2}, {"f16x2", 4}, {"bf16x2", 4}};
    for (auto [name, size] : names)
        if (t == name) return size;
    if (t.empty() || (t[0] != 'b' && t[0] != 'u' && t[0] != 's' && t[0] != 'f')) return 0;
    int bits = 0;
    for (char c : t.substr(1)) {
        if (c < '0' || c > '9') return 0;
        bits = bits * 10 + c - '0';
    }
    return bits == 8 || bits == 16 || bits == 32 || bits == 64 ? bits / 8 : 0;
}

bool known(const Opcode& op, std::initializer_list<std::string_view> extra) {
    static const std::string_view hints[] = {
        "weak",        "relaxed", "acquire",     "release", "acq_rel", "volatile",
        "cta",         "gpu",     "sys",         "cluster", "nc",      "ca",
        "cg",          "cs",      "cv",          "lu",      "wb",      "wt",
        "global",      "shared",  "shared::cta", "local",   "param",   "param::entry",
        "param::func", "const",   "v2",          "v4",      "v8",      "unified"};
    for (size_t i = 0; i + 1 < op.modifiers.size(); ++i) {
        auto m = op.modifiers[i];
        bool ok = m.substr(0, 4) == "L1::" || m.substr(0, 4) == "L2::";
        for (auto h : hints) ok |= m == h;
        for (auto h : extra) ok |= m == h;
        if (!ok) return false;
    }
    return true;
}

}  // namespace

bool bind_memory(const Opcode& op, Instruction& in) {
    auto base = op.base, t = op.last();
    if (base == "ld" || base == "ldu" || base == "st") {
        if (!known(op, {})) return false;
        in.mode[0] = space_of(op);
        in.mode[1] = bytes_of(t);
        in.mode[2] = op.has("v2") ? 2 : op.has("v4") ? 4 : op.has("v8") ? 8 : 1;
        in.mode[3] = t[0] == 's';
        in.mode[4] =
            op.has("acquire") || op.has("release") || op.has("relaxed") || op.has("volatile");
        if (!in.mode[1] || in.mode[0] < 0) return false;
        in.handler = base == "st" ? store : load;
        static const Class classes[] = {Class::kGlobal, Class::kGlobal, Class::kShared,
                                        Class::kLocal,  Class::kParam,  Class::kGlobal};
        in.kind = classes[in.mode[0]];
        // st.param belongs to a call, which is refused where it is reached
        if (base == "st" && in.mode[0] == kParamSpace) in.handler = nothing;
        return true;
    }
    if (base == "ldmatrix" || base == "stmatrix") {
        if (!op.has("m8n8") || t != "b16") return false;
        in.kind = Class::kShared;
        in.aligned = true;
        in.mode[0] = op.has("x4") ? 4 : op.has("x2") ? 2 : 1;
        in.mode[1] = op.has("trans");
        in.mode[2] = base == "stmatrix";
        in.mode[3] = space_of(op) == kGeneric;
        in.handler = matrix;
        return true;
    }
    if (base == "atom" || base == "red") {
        static const std::pair<std::string_view, int> ops[] = {
            {"add", kAdd}, {"min", kMin},   {"max", kMax}, {"and", kAnd}, {"or", kOr},
            {"xor", kXor}, {"exch", kExch}, {"cas", kCas}, {"inc", kInc}, {"dec", kDec}};
        in.mode[2] = -1;
        for (auto [name, value] : ops)
            if (op.has(name)) in.mode[2] = value;
        if (in.mode[2] < 0 || !known(op, {"add", "min", "max", "and", "or", "xor", "exch", "cas",
                                          "inc", "dec", "noftz"}))
            return false;
        in.kind = Class::kAtomic;
        in.mode[0] = space_of(op);
        in.mode[1] = bytes_of(t);
        in.mode[3] = t == "f16"      ? kHalfType
                     : t == "bf16"   ? kBfloatType
                     : t == "f16x2"  ? kHalfPair
                     : t == "bf16x2" ? kBfloatPair
                     : t[0] == 'f'   ? kFloat
                     : t[0] == 's'   ? kSigned
                                     : kBits;
        in.mode[4] = op.has("v2") ? 2 : op.has("v4") ? 4 : op.has("v8") ? 8 : 1;
        in.mode[5] = base == "atom";
        bool floating = in.mode[3] >= kFloat;
        if (!in.mode[1] || in.mode[0] < 0 || (floating && in.mode[2] > kMax) ||
            (in.mode[3] == kFloat && in.mode[2] != kAdd))
            return false;
        in.handler = atomic;
        return true;
    }
    if (base == "cvta") {
        in.kind = Class::kMove;
        in.mode[1] = op.has("to");
        in.mode[0] = op.has("shared") ? 1 : op.has("local") ? 2 : op.has("param") ? 3 : 0;
        in.handler = cvta;
        return true;
    }
    if (base == "isspacep") {
        in.mode[0] = t == "global"                         ? kGlobalSpace
                     : t == "shared" || t == "shared::cta" ? kSharedSpace
                     : t == "local"                        ? kLocalSpace
                                                           : -1;
        in.handler = isspacep;
        return in.mode[0] >= 0;
    }
    if (base == "prefetch" || base == "prefetchu" || base == "applypriority" || base == "discard") {
        in.kind = Class::kGlobal;
        in.handler = nothing;
        return base != "discard";
    }
    return false;
}

}  // namespace emu
