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
#include <utility>

#include "machine.h"
#include "modifiers.h"
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
            if (in.mode[4]) acquire(w, at);
            p = global_read(w, l, at, total, &unwritten);
            check_aligned(w, l, at, total);
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
    if (shared_mask)
        count_shared(shared, shared_mask, total, c.shared_wavefronts[0], c.shared_ideal[0]);
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
            p = global_write(w, l, at, total, values);
            check_aligned(w, l, at, total);
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
    if (shared_mask)
        count_shared(shared, shared_mask, total, c.shared_wavefronts[1], c.shared_ideal[1]);
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
        uint8_t held[8][16], poison[8][16];
        auto place = [&](int l, int j) {  // row and byte of half j of lane l
            int row = l / 4, column = 2 * (l % 4) + j;
            return transposed ? std::pair(column, 2 * row) : std::pair(row, 2 * column);
        };
        for (int l = 0; storing && l < 32; ++l) {
            uint64_t out = lane_bits(w, regs[i], l);
            for (int j = 0; j < 2; ++j) {
                auto [row, byte] = place(l, j);
                auto half = static_cast<uint16_t>(out >> (16 * j));
                std::memcpy(&held[row][byte], &half, 2);
                poison[row][byte] = poison[row][byte + 1] = poisoned(w, regs[i]) >> l & 1;
            }
        }
        for (int r = 0; r < 8; ++r) {
            int lane = 8 * i + r;
            if (poisoned(w, where) >> lane & 1) w.fault("address is uninitialised", lane);
            uint64_t at = address(w, where, lane);
            if (in.mode[3] && window(at) != kSharedSpace) w.fault("not a shared address", lane);
            check_shared(w, lane, at, 16, 16);
            rows[r] = static_cast<uint32_t>(at);
            if (storing) {  // row by row: Triton stores some twice, alike
                shared_write(w, lane, rows[r], 16, held[r]);
                std::memcpy(&b.shared[rows[r]], held[r], 16);
                std::memcpy(&b.poison[rows[r]], poison[r], 16);
            } else {
                shared_read(w, lane, rows[r], 16);
            }
        }
        count_phase(rows, 8, 16, c.ldmatrix_wavefronts, c.ldmatrix_ideal);
        for (int l = 0; !storing && l < 32; ++l) {
            uint32_t value = 0;
            bool bad = false;
            for (int j = 0; j < 2; ++j) {
                auto [row, byte] = place(l, j);
                uint32_t at = rows[row] + byte;
                value |= static_cast<uint32_t>(load_bits(&b.shared[at], 2)) << (16 * j);
                bad |= b.poison[at] | b.poison[at + 1];
            }
            set_lane(w, regs[i], l, value, bad);
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

// createpolicy: a hint for a cache that is not modelled; 0 serves for any.
Step make_policy(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    const uint64_t none[32] = {};
    write<uint64_t>(w, in.ops[0], none, mask, 0);
    return Step::kNext;
}

// The bytes of an element, 0 where the type is not known.
int bytes_of(std::string_view t) {
    static const std::pair<std::string_view, int> names[] = {
        {"f16", 2}, {"bf16", 2}, {"f16x2", 4}, {"bf16x2", 4}, {"b8", 1},  {"u8", 1},
        {"s8", 1},  {"b16", 2},  {"u16", 2},   {"s16", 2},    {"b32", 4}, {"u32", 4},
        {"s32", 4}, {"f32", 4},  {"b64", 8},   {"u64", 8},    {"s64", 8}, {"f64", 8}};
    for (auto [name, size] : names)
        if (t == name) return size;
    return 0;
}

// Where an access goes, whether it is a point of order, how many elements; and what only hints.
struct Access {
    int space = kGeneric, elements = 1;
    bool ordered = false, policy = false;  // policy: an operand for the L2 cache follows

    explicit Access(Modifiers& left) {
        left.take("unified");
        int place = left.take_one_of({"global", "shared", "shared::cta", "local", "param",
                                      "param::entry", "param::func", "const"});
        constexpr int spaces[] = {kGlobalSpace, kSharedSpace, kSharedSpace, kLocalSpace,
                                  kParamSpace,  kParamSpace,  kParamSpace,  kConstSpace};
        if (place >= 0) space = spaces[place];
        ordered = left.take_one_of({"acquire", "release", "acq_rel", "relaxed", "volatile"}) >= 0;
        left.take("weak");
        left.take_one_of({"cta", "cluster", "gpu", "sys"});
        policy = left.take("L2::cache_hint");
        left.take_beginning("L1::");
        left.take_beginning("L2::");
        left.take_one_of({"ca", "cg", "cs", "cv", "lu", "wb", "wt"});
        left.take("nc");
        int vector = left.take_one_of({"v2", "v4", "v8"});
        if (vector >= 0) elements = 2 << vector;
    }
};

bool bind_transfer(const Opcode& op, Instruction& in) {
    Modifiers left(op);
    bool storing = op.base == "st";
    auto type = left.take_last();
    Access access(left);
    int n = access.elements;
    static const Class classes[] = {Class::kGlobal, Class::kGlobal, Class::kShared,
                                    Class::kLocal,  Class::kParam,  Class::kGlobal};
    in.kind = classes[access.space];
    // st.param belongs to a call, which is refused where it is reached
    if (storing && access.space == kParamSpace) return in.handler = nothing, true;
    int32_t modes[] = {access.space, bytes_of(type), n, type.starts_with('s'), access.ordered};
    std::copy(std::begin(modes), std::end(modes), in.mode);
    in.handler = storing ? store : load;
    return in.mode[1] && left.none_left() && in.count == n + 1 + access.policy &&
           in.ops[storing ? 0 : n].is_memory();
}

bool bind_matrix(const Opcode& op, Instruction& in) {
    Modifiers left(op);
    in.kind = Class::kShared;
    in.aligned = true;
    in.handler = matrix;
    if (!left.take("sync") || !left.take("aligned") || !left.take("m8n8") || !left.take("b16"))
        return false;
    int count = left.take_one_of({"x1", "x2", "x4"});
    in.mode[0] = count < 0 ? 1 : 1 << count;
    in.mode[1] = left.take("trans");
    in.mode[2] = op.base == "stmatrix";
    in.mode[3] = left.take_one_of({"shared", "shared::cta"}) < 0;
    return left.none_left() && in.count == in.mode[0] + 1 &&
           in.ops[in.mode[2] ? 0 : in.mode[0]].is_memory();
}

bool bind_atomic(const Opcode& op, Instruction& in) {
    Modifiers left(op);
    in.kind = Class::kAtomic;
    in.handler = atomic;
    auto type = left.take_last();
    left.take("noftz");
    Access access(left);
    int what =
        left.take_one_of({"add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"});
    int kind = type == "f16"           ? kHalfType
               : type == "bf16"        ? kBfloatType
               : type == "f16x2"       ? kHalfPair
               : type == "bf16x2"      ? kBfloatPair
               : type.starts_with('f') ? kFloat
               : type.starts_with('s') ? kSigned
                                       : kBits;
    bool returns = op.base == "atom";
    int32_t modes[] = {access.space, bytes_of(type), what, kind, access.elements, returns};
    std::copy(std::begin(modes), std::end(modes), in.mode);
    if (!in.mode[1] || what < 0 || !left.none_left()) return false;
    if (kind >= kFloat && what > (kind == kFloat ? kAdd : kMax)) return false;
    int n = access.elements;
    return in.count == (returns ? n : 0) + 1 + n + (what == kCas) + access.policy &&
           in.ops[returns ? n : 0].is_memory();
}

bool bind_address(const Opcode& op, Instruction& in) {
    Modifiers left(op);
    in.kind = Class::kMove;
    if (op.base == "isspacep") {
        in.handler = isspacep;
        int space = left.take_one_of({"global", "shared", "shared::cta", "local"});
        constexpr int spaces[] = {kGlobalSpace, kSharedSpace, kSharedSpace, kLocalSpace};
        if (space >= 0) in.mode[0] = spaces[space];
        return space >= 0 && left.none_left() && in.count == 2;
    }
    in.handler = cvta;
    in.mode[1] = left.take("to");
    int space = left.take_one_of({"global", "const", "shared", "shared::cta", "local", "param"});
    constexpr int windows[] = {0, 0, 1, 1, 2, 3};
    if (space >= 0) in.mode[0] = windows[space];
    return space >= 0 && left.take_one_of({"u32", "u64"}) >= 0 && left.none_left() && in.count == 2;
}

}  // namespace

bool bind_memory(const Opcode& op, Instruction& in) {
    auto base = op.base;
    if (base == "ld" || base == "ldu" || base == "st") return bind_transfer(op, in);
    if (base == "ldmatrix" || base == "stmatrix") return bind_matrix(op, in);
    if (base == "atom" || base == "red") return bind_atomic(op, in);
    if (base == "cvta" || base == "isspacep") return bind_address(op, in);
    if (base == "createpolicy") {
        in.kind = Class::kMove;
        in.handler = make_policy;
        return in.count >= 1 && in.ops[0].bits == 64;
    }
    in.kind = Class::kGlobal;
    in.handler = nothing;
    return base == "prefetch" || base == "prefetchu" || base == "applypriority";
}

}  // namespace emu
