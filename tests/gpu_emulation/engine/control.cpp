// Branches, the ends of threads, barriers and fences.
#include <bit>

#include "machine.h"
#include "modifiers.h"

namespace emu {
namespace {

Step branch(Warp&, Group&, const Instruction&, uint32_t) { return Step::kBranch; }
Step leave(Warp&, Group&, const Instruction&, uint32_t) { return Step::kExit; }
Step nothing(Warp&, Group&, const Instruction&, uint32_t) { return Step::kNext; }
Step trap(Warp& w, Group&, const Instruction&, uint32_t) {
    w.fault("the kernel stopped itself (trap)");
}
Step call(Warp& w, Group&, const Instruction& in, uint32_t) {
    const std::string& what = w.machine->program->opcodes[in.opcode];
    w.fault("a call is reached (" + what +
            "): a device-side assertion or printf, or a function that was not inlined; functions "
            "are not emulated");
}

// Everything that happened before here is visible to bulk copies and wgmma issued after here.
Step proxy_fence(Warp& w, Group&, const Instruction&, uint32_t) {
    for (int i = 0; i < kMaxWarps; ++i)
        w.clock.proxied[i] = std::max(w.clock.proxied[i], w.clock.at[i]);
    w.tick();
    return Step::kNext;
}

Step warp_sync(Warp& w, Group&, const Instruction&, uint32_t mask) {
    w.sync_lanes(mask);
    return Step::kNext;
}

// bar.sync a{, b}, bar.arrive a, b, bar.red.op: threads are counted, not warps. mode: arrive only,
// reduction (0 none, 1 popc, 2 and, 3 or), operand of the barrier's number
Step barrier(Warp& w, Group& g, const Instruction& in, uint32_t mask) {
    Block& b = *w.block;
    int at = in.mode[2], lane = std::countr_zero(mask);
    auto id = static_cast<uint32_t>(lane_bits(w, in.ops[at], lane));
    if (id > 15) w.fault("barrier " + std::to_string(id) + ": a block has 16");
    bool counted = in.count > at + 1 + (in.mode[1] != 0);
    uint32_t expected = 0;
    if (counted) {
        expected = static_cast<uint32_t>(lane_bits(w, in.ops[at + 1], lane));
        if (!expected || expected % 32)
            w.fault("a barrier's thread count must be a multiple of 32, not " +
                    std::to_string(expected));
    } else if (in.mode[0]) {
        w.fault("bar.arrive needs a thread count");
    }
    Barrier& bar = b.barriers[id];
    if (bar.arrived && bar.expected != expected)
        w.fault("barrier " + std::to_string(id) + " is joined with different thread counts");
    if (in.mode[1]) {
        uint32_t p = predicate(w, in.ops[in.count - 1]);
        if (poisoned(w, in.ops[in.count - 1]) & mask)
            w.fault("the barrier's predicate is uninitialised");
        if (!bar.arrived) bar.reduction = in.mode[1] == 2 ? 1 : 0;
        int count = std::popcount(p & mask);
        bar.reduction = in.mode[1] == 1   ? bar.reduction + count
                        : in.mode[1] == 2 ? bar.reduction && count == std::popcount(mask)
                                          : bar.reduction || count;
    }
    if (!bar.arrived) bar.clock = Clocks();
    bar.clock.join(w.clock);
    w.sync_lanes(mask);  // and what the warp does from here on is not covered by the barrier
    bar.expected = expected;
    bar.arrived += std::popcount(mask);
    w.machine->counters.barriers++;
    if (in.mode[0]) return Step::kNext;
    g.wait = Wait::kBarrier;
    g.barrier = static_cast<int32_t>(id);
    return Step::kBlock;
}

}  // namespace

static bool bind_barrier(Modifiers& left, Instruction& in) {
    in.kind = Class::kBarrier;
    in.control = true;
    left.take("cta");
    if (left.take("warp")) {
        in.sync_mask = 0;
        in.handler = warp_sync;
        return left.take("sync") && left.none_left() && in.count == 1;
    }
    in.handler = barrier;
    int kind = left.take_one_of({"sync", "arrive", "red"});
    in.aligned = left.take("aligned");
    in.mode[0] = kind == 1;
    if (kind == 2) {
        in.mode[1] = 1 + left.take_one_of({"popc", "and", "or"});
        in.mode[2] = 1;
        if (!in.mode[1] || left.take_last() != (in.mode[1] == 1 ? "u32" : "pred")) return false;
    }
    int least = 1 + in.mode[2] + (in.mode[1] != 0);
    return kind >= 0 && left.none_left() && (in.count == least || in.count == least + 1);
}

bool bind_control(const Opcode& op, Instruction& in) {
    auto base = op.base;
    Modifiers left(op);
    in.kind = Class::kControl;
    if (base == "bra") {
        left.take("uni");
        in.handler = branch;
        in.control = true;
        return in.count == 1 && in.ops[0].kind == kLabel && left.none_left();
    }
    if (base == "ret" || base == "exit") {
        left.take("uni");
        in.handler = leave;
        in.control = true;
        return in.count == 0 && left.none_left();
    }
    if (base == "trap" || base == "brkpt") return in.handler = trap, left.none_left();
    if (base == "call") return in.handler = call, true;
    if (base == "fence" && left.take("proxy")) {
        in.handler = proxy_fence;
        // maps that a kernel makes are read when they are used: that fence orders nothing here
        if (left.take("tensormap::generic")) return in.handler = nothing, true;
        return left.take_one_of({"async", "async::generic"}) >= 0 &&
               (left.none_left() || left.take_one_of({"global", "shared::cta"}) >= 0);
    }
    // memory is never late here: a fence between threads orders nothing that was not
    if (base == "membar" || base == "fence" || base == "nanosleep" || base == "pragma")
        return in.handler = nothing, true;
    // registers are not counted, and kernels do not overlap
    if (base == "setmaxnreg" || base == "griddepcontrol") return in.handler = nothing, true;
    if (base == "bar") {
        bool bound = bind_barrier(left, in);
        in.aligned = in.sync_mask < 0;  // by definition
        return bound;
    }
    return base == "barrier" && !op.has("cluster") && bind_barrier(left, in);
}

}  // namespace emu
