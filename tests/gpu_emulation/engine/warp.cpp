// What lanes of a warp exchange: shfl, vote, match, redux, activemask, elect.
//
// Lanes named by the mask wait for each other (the scheduler sees to it). Data moves; memory is not
// ordered by these, so a shared-memory exchange next to a shuffle still needs its __syncwarp.
#include <algorithm>
#include <bit>
#include <cmath>

#include "machine.h"

namespace emu {
namespace {

uint32_t members(Warp& w, const Operand& o, uint32_t mask) {
    int lane = std::countr_zero(mask);
    if (poisoned(w, o) >> lane & 1) w.fault("the member mask is uninitialised", lane);
    return static_cast<uint32_t>(lane_bits(w, o, lane));
}

// shfl.sync.mode.b32 d|p, a, b, c, membermask; mode: 0 up 1 down 2 bfly 3 idx, has p
Step shfl(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    const Operand* o = in.ops + 1 + in.mode[1];
    auto *a = source<uint32_t>(w, o[0]), *b = source<uint32_t>(w, o[1]),
         *c = source<uint32_t>(w, o[2]);
    uint32_t out[32], valid = 0, poison = poisoned(w, o[1]) | poisoned(w, o[2]);
    for (int l = 0; l < 32; ++l) {
        if (!(mask >> l & 1)) continue;
        int clamp = c[l] & 31, segment = c[l] >> 8 & 31, low = l & segment,
            high = low | (clamp & ~segment), n = b[l] & 31, from = l;
        bool ok = false;
        switch (in.mode[0]) {
            case 0: from = l - n, ok = from >= high; break;
            case 1: from = l + n, ok = from <= high; break;
            case 2: from = l ^ n, ok = from <= high; break;
            default: from = low | (n & ~segment), ok = from <= high;
        }
        if (!ok) from = l;
        if (!(mask >> from & 1))
            w.fault("shfl reads lane " + std::to_string(from) + ", which does not take part", l);
        out[l] = a[from];
        valid |= static_cast<uint32_t>(ok) << l;
        if (poisoned(w, o[0]) >> from & 1) poison |= 1u << l;
    }
    write<uint32_t>(w, in.ops[0], out, mask, poison);
    if (in.mode[1]) set_predicate(w, in.ops[1], valid, mask, 0);
    return Step::kNext;
}

// vote.sync.{all,any,uni,ballot} d, {!}a, membermask
Step vote(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    uint32_t p = predicate(w, in.ops[1]) & mask, bad = poisoned(w, in.ops[1]) & mask;
    if (in.mode[0] == 3) {
        uint32_t out[32];
        std::fill(out, out + 32, p);
        write<uint32_t>(w, in.ops[0], out, mask, bad ? ~0u : 0);
    } else {
        bool value = in.mode[0] == 0 ? p == mask : in.mode[0] == 1 ? p != 0 : p == 0 || p == mask;
        set_predicate(w, in.ops[0], value ? ~0u : 0, mask, bad ? ~0u : 0);
    }
    return Step::kNext;
}

// match.{any,all}.sync.b32/b64 d{|p}, a, membermask; mode: all, has p
Step match(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    const Operand& a = in.ops[1 + in.mode[1]];
    uint32_t out[32] = {}, bad = poisoned(w, a) & mask, all = 1;
    for (int l = 0; l < 32; ++l)
        for (int m = 0; m < 32; ++m)
            if ((mask >> l & 1) && (mask >> m & 1)) {
                if (lane_bits(w, a, l) == lane_bits(w, a, m))
                    out[l] |= 1u << m;
                else
                    all = 0;
            }
    if (in.mode[0])
        for (auto& x : out) x = all ? mask : 0;
    write<uint32_t>(w, in.ops[0], out, mask, bad ? ~0u : 0);
    if (in.mode[1]) set_predicate(w, in.ops[1], all ? ~0u : 0, mask, bad ? ~0u : 0);
    return Step::kNext;
}

// redux.sync.op.type d, a, membermask; mode: operation, signed
Step redux(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    auto* a = source<uint32_t>(w, in.ops[1]);
    uint32_t value = a[std::countr_zero(mask)], out[32];
    for (int l = std::countr_zero(mask) + 1; l < 32; ++l) {
        if (!(mask >> l & 1)) continue;
        uint32_t x = a[l];
        switch (in.mode[0]) {
            case 0: value += x; break;
            case 1:
                value = in.mode[1] ? static_cast<uint32_t>(std::min<int32_t>(value, x))
                                   : std::min(value, x);
                break;
            case 2:
                value = in.mode[1] ? static_cast<uint32_t>(std::max<int32_t>(value, x))
                                   : std::max(value, x);
                break;
            case 3: value &= x; break;
            case 4: value |= x; break;
            default: value ^= x;
        }
    }
    std::fill(out, out + 32, value);
    write<uint32_t>(w, in.ops[0], out, mask, poisoned(w, in.ops[1]) & mask ? ~0u : 0);
    return Step::kNext;
}

Step activemask(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    uint32_t out[32];
    std::fill(out, out + 32, mask);
    write<uint32_t>(w, in.ops[0], out, mask, 0);
    return Step::kNext;
}

// elect.sync d|p, membermask: the lowest lane is the leader.
Step elect(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    uint32_t out[32], leader = std::countr_zero(members(w, in.ops[2], mask) & mask);
    std::fill(out, out + 32, leader);
    if (in.ops[0].kind != kSink) write<uint32_t>(w, in.ops[0], out, mask, 0);
    set_predicate(w, in.ops[1], 1u << leader, mask, 0);
    return Step::kNext;
}

int index_of(const Opcode& op, std::initializer_list<std::string_view> names) {
    int i = 0;
    for (auto n : names) {
        if (op.has(n)) return i;
        ++i;
    }
    return -1;
}

}  // namespace

bool bind_warp(const Opcode& op, Instruction& in) {
    auto base = op.base;
    in.kind = Class::kShuffle;
    if (base == "activemask") return in.handler = activemask, true;
    if (!op.has("sync")) return false;
    in.sync_mask = in.count - 1;
    if (base == "shfl") {
        in.mode[0] = index_of(op, {"up", "down", "bfly", "idx"});
        in.mode[1] = in.count == 6;
        in.handler = shfl;
    } else if (base == "vote") {
        in.mode[0] = index_of(op, {"all", "any", "uni", "ballot"});
        in.handler = vote;
    } else if (base == "match") {
        in.mode[0] = op.has("all");
        in.mode[1] = in.count == 4;
        in.handler = match;
    } else if (base == "redux") {
        in.mode[0] = index_of(op, {"add", "min", "max", "and", "or", "xor"});
        in.mode[1] = op.last() == "s32";
        if (op.last() == "f32") return false;
        in.handler = redux;
    } else if (base == "elect") {
        in.handler = elect;
    } else {
        return false;
    }
    return in.mode[0] >= 0;
}

}  // namespace emu
