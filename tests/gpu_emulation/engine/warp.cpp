// What lanes of a warp exchange: shfl, vote, match, redux, activemask, elect.
//
// Lanes named by the mask wait for each other (the scheduler sees to it). Data moves; memory is not
// ordered by these, so a shared-memory exchange next to a shuffle still needs its __syncwarp.
#include <algorithm>
#include <bit>
#include <cmath>

#include "machine.h"
#include "modifiers.h"

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
enum Vote { kAll, kAny, kUniform, kBallot };
Step vote(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    uint32_t p = predicate(w, in.ops[1]) & mask, bad = poisoned(w, in.ops[1]) & mask;
    if (in.mode[0] == kBallot) {
        uint32_t out[32];
        std::fill(out, out + 32, p);
        write<uint32_t>(w, in.ops[0], out, mask, bad ? ~0u : 0);
    } else {
        bool value = in.mode[0] == kAll   ? p == mask
                     : in.mode[0] == kAny ? p != 0
                                          : p == 0 || p == mask;
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

// movmatrix.m8n8.trans.b16: lane l has row l / 4, columns 2 (l % 4) and the next, of an 8 x 8
// matrix, and gets as much of the transposed one.
Step movmatrix(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    auto* a = source<uint32_t>(w, in.ops[1]);
    uint32_t out[32] = {}, poison = 0;
    for (int l = 0; l < 32; ++l)
        for (int j = 0; j < 2; ++j) {
            int row = 2 * (l % 4) + j, column = l / 4, from = 4 * row + column / 2;
            out[l] |= (a[from] >> (16 * (column % 2)) & 0xffff) << (16 * j);
            poison |= (poisoned(w, in.ops[1]) >> from & 1) << l;
        }
    write<uint32_t>(w, in.ops[0], out, mask, poison);
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

bool bind_shfl(Modifiers left, Instruction& in) {
    in.mode[0] = left.take_one_of({"up", "down", "bfly", "idx"});
    in.mode[1] = in.count == 6;
    in.handler = shfl;
    return in.mode[0] >= 0 && left.take("b32") && left.none_left() &&
           (in.count == 5 || in.count == 6);
}

bool bind_vote(Modifiers left, Instruction& in) {
    in.mode[0] = left.take_one_of({"all", "any", "uni", "ballot"});
    in.handler = vote;
    bool typed = left.take(in.mode[0] == kBallot ? "b32" : "pred");
    return in.mode[0] >= 0 && typed && left.none_left() && in.count == 3;
}

bool bind_match(Modifiers left, Instruction& in) {
    bool all = left.take("all");
    if (all == left.take("any")) return false;
    in.mode[0] = all;
    in.mode[1] = in.count == 4;
    in.handler = match;
    bool typed = left.take_one_of({"b32", "b64"}) >= 0;
    return typed && left.none_left() && (in.count == 3 || (in.count == 4 && all));
}

bool bind_redux(Modifiers left, Instruction& in) {
    in.mode[0] = left.take_one_of({"add", "min", "max", "and", "or", "xor"});
    in.mode[1] = left.take("s32");
    in.handler = redux;
    bool logic = in.mode[0] >= 3;
    bool typed = in.mode[1] ? !logic : left.take(logic ? "b32" : "u32");
    return in.mode[0] >= 0 && typed && left.none_left() && in.count == 3;
}

}  // namespace

bool bind_warp(const Opcode& op, Instruction& in) {
    in.kind = Class::kShuffle;
    if (op.base == "activemask") {
        in.handler = activemask;
        return op.modifiers.size() == 1 && op.last() == "b32" && in.count == 1;
    }
    Modifiers left(op);
    if (!left.take("sync")) return false;
    if (op.base == "movmatrix") {
        in.handler = movmatrix;
        in.aligned = true;
        return left.take("aligned") && left.take("m8n8") && left.take("trans") &&
               left.take("b16") && left.none_left() && in.count == 2;
    }
    in.sync_mask = in.count - 1;
    if (op.base == "shfl") return bind_shfl(left, in);
    if (op.base == "vote") return bind_vote(left, in);
    if (op.base == "match") return bind_match(left, in);
    if (op.base == "redux") return bind_redux(left, in);
    in.handler = elect;
    return op.base == "elect" && left.none_left() && in.count == 3;
}

}  // namespace emu
