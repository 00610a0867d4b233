// mbarrier: a phase ends when its arrivals and the bytes of its bulk copies are all there.
//
//   init count        pending = count, phase 0
//   expect_tx n       bytes += n          arrive      pending -= 1
//   bulk copy lands   bytes -= its size   pending == 0 and bytes == 0: phase += 1, pending = count
//   wait              for the phase's end; takes over what the arrivals had seen (acquire)
//
// Copies land as late as is legal: when somebody waits for the phase, all arrivals are in and only
// bytes are missing, one after another until the phase ends; so a count of bytes that is too small
// leaves the last of them poisoned, and one too large never ends.
// Source: PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier".
#include <bit>
#include <utility>

#include "machine.h"
#include "modifiers.h"

namespace emu {

std::string describe(const Mbarrier& bar) {
    return " (" + std::to_string(bar.pending) + " arrivals of " + std::to_string(bar.expected) +
           " and " + std::to_string(bar.bytes) + " bytes are missing, phase " +
           std::to_string(bar.phase) + " runs)";
}

Mbarrier& mbarrier_at(Warp& w, int lane, uint64_t at) {
    check_shared(w, lane, at, 8, 8);
    auto found = w.block->mbarriers.find(static_cast<uint32_t>(at));
    if (found == w.block->mbarriers.end())
        w.fault("no mbarrier is initialised at shared address " + hex(at), lane);
    // its initialisation must come before by some barrier; using it is not a race with others
    shared_read(w, lane, static_cast<uint32_t>(at), 8);
    return found->second;
}

static void end_if_complete(Mbarrier& bar) {
    if (bar.pending || bar.bytes) return;
    ++bar.phase;
    bar.pending = bar.expected;
    bar.released.join(bar.arriving);
}

static void arrive(Warp& w, int lane, Mbarrier& bar, uint32_t count) {
    if (count > bar.pending)
        w.fault("more arrivals than the mbarrier expects" + describe(bar), lane);
    bar.arriving.join(w.clock);
    bar.pending -= count;
    w.tick();
    end_if_complete(bar);
}

bool phase_ended(Block& b, uint32_t at, uint64_t phase) {
    Mbarrier& bar = b.mbarriers.at(at);
    for (auto& [warp, lane] : std::exchange(bar.deferred, {})) {
        Warp& w = b.warps[warp];
        w.current_mask = 1u << lane;
        land_all(w, lane);
        arrive(w, lane, bar, 1);
    }
    while (bar.phase == phase && !bar.pending && !bar.copies.empty()) {
        // any order is legal: with a seed a random one, else the newest first
        size_t i = b.machine->seed ? b.random() % bar.copies.size() : bar.copies.size() - 1;
        BulkCopy copy = std::move(bar.copies[i]);
        bar.copies.erase(bar.copies.begin() + static_cast<std::ptrdiff_t>(i));
        land(b, copy);
        bar.arriving.at[kAsync] = std::max(bar.arriving.at[kAsync], copy.stamp);
        bar.bytes -= copy.total;
        end_if_complete(bar);
    }
    return bar.phase > phase;
}

namespace {

enum What : int32_t { kInit, kInval, kArrive, kArriveDrop, kExpect, kArriveExpect };

// mode: what, has a destination (the state: phase in the upper, nothing in the lower half)
Step update(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    const Operand& where = in.ops[in.mode[1]];
    int next = in.mode[1] + 1;
    const Operand* number = in.count > next ? &in.ops[next] : nullptr;
    if (uint32_t bad = (poisoned(w, where) | (number ? poisoned(w, *number) : 0)) & mask)
        w.fault("address or count is uninitialised", std::countr_zero(bad));
    for (int l = 0; l < 32; ++l) {
        if (!(mask >> l & 1)) continue;
        uint64_t at = address(w, where, l);
        auto n = number ? static_cast<uint32_t>(lane_bits(w, *number, l)) : 1;
        if (in.mode[0] == kInit) {
            check_shared(w, l, at, 8, 8);
            if (!n || n >= 1u << 20)
                w.fault("an mbarrier's count must be 1 to 2^20 - 1, not " + std::to_string(n), l);
            auto offset = static_cast<uint32_t>(at);
            shared_write(w, l, offset, 8);
            std::memset(w.block->poison.data() + at, 1, 8);  // opaque: not to be read as data
            w.block->mbarriers[offset] = {.expected = n, .pending = n};
            continue;
        }
        Mbarrier& bar = mbarrier_at(w, l, at);
        uint64_t state = bar.phase << 32;
        switch (in.mode[0]) {
            case kInval: w.block->mbarriers.erase(static_cast<uint32_t>(at)); break;
            case kArriveDrop: --bar.expected; [[fallthrough]];
            case kArrive: arrive(w, l, bar, n); break;
            case kExpect: bar.bytes += n; break;
            case kArriveExpect:
                bar.bytes += n;
                arrive(w, l, bar, 1);
                break;
        }
        if (in.mode[1] && in.ops[0].kind != kSink) set_lane(w, in.ops[0], l, state, false);
    }
    return Step::kNext;
}

// {test,try}_wait{.parity} p, [addr], state or parity{, hint}. mode: parity, blocking
Step wait(Warp& w, Group& g, const Instruction& in, uint32_t mask) {
    if (uint32_t bad = (poisoned(w, in.ops[1]) | poisoned(w, in.ops[2])) & mask)
        w.fault("address or phase is uninitialised", std::countr_zero(bad));
    uint32_t done = 0;
    for (int l = 0; l < 32; ++l) {
        if (!(mask >> l & 1)) continue;
        auto at = static_cast<uint32_t>(address(w, in.ops[1], l));
        Mbarrier& bar = mbarrier_at(w, l, at);
        uint64_t token = lane_bits(w, in.ops[2], l);
        if (in.mode[0] && token > 1) w.fault("a phase parity is 0 or 1", l);
        // with a parity: the running phase if it has that parity, else the one before it
        uint64_t phase = !in.mode[0]                ? token >> 32
                         : (bar.phase & 1) == token ? bar.phase
                         : bar.phase                ? bar.phase - 1
                                                    : ~0ull;
        bool ended = phase == ~0ull || phase_ended(*w.block, at, phase);
        if (ended) {
            w.clock.join(bar.released);
            done |= 1u << l;
        } else if (in.mode[1]) {
            // the whole group tries again once this phase has ended, instead of spinning
            g.wait = Wait::kMbarrier, g.address = at, g.phase = phase;
            return Step::kRetry;
        }
    }
    set_predicate(w, in.ops[0], done, mask, 0);
    return Step::kNext;
}

// mapa.shared::cluster d, a, rank: clusters have one block, whose rank is 0.
Step map_address(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    for (int l = 0; l < 32; ++l) {
        if (!(mask >> l & 1)) continue;
        if (lane_bits(w, in.ops[2], l)) w.fault("clusters of more than one block", l);
        set_lane(w, in.ops[0], l, address(w, in.ops[1], l), poisoned(w, in.ops[1]) >> l & 1);
    }
    return Step::kNext;
}

}  // namespace

bool bind_mbarrier(const Opcode& op, Instruction& in) {
    Modifiers left(op);
    in.kind = Class::kBarrier;
    in.control = true;
    if (op.base == "mapa") {
        in.handler = map_address;
        return left.take("shared::cluster") && left.take_one_of({"u32", "u64"}) >= 0 &&
               left.none_left() && in.count == 3;
    }
    if (op.base != "mbarrier" || !left.take("b64")) return false;
    left.take_one_of({"shared", "shared::cta", "shared::cluster"});
    left.take_one_of({"acquire", "release", "relaxed"});
    left.take_one_of({"cta", "cluster"});
    int waiting = left.take_one_of({"test_wait", "try_wait"});
    if (waiting >= 0) {
        in.mode[0] = left.take("parity");
        in.mode[1] = waiting;
        in.handler = wait;
        return left.none_left() && (in.count == 3 || (waiting && in.count == 4));
    }
    in.handler = update;
    bool state = in.count && !in.ops[0].is_memory();
    in.mode[0] = left.take_one_of({"init", "inval", "arrive", "arrive_drop", "expect_tx"});
    in.mode[1] = state;
    if (in.mode[0] == kArrive && left.take("expect_tx")) in.mode[0] = kArriveExpect;
    int operands = in.count - state;
    bool counted = in.mode[0] == kInit || in.mode[0] == kExpect || in.mode[0] == kArriveExpect;
    return in.mode[0] >= 0 && left.none_left() &&
           (operands == 1 + counted || (in.mode[0] != kInval && operands == 2));
}

}  // namespace emu
