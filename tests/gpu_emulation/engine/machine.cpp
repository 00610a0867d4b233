// The scheduler: groups of lanes within a warp, warps within a block, blocks one after another.
//
//   A warp is a list of groups (lanes, pc). The runnable group with the smallest pc runs; groups
//   that meet at one pc become one: so both sides of a branch come together at its end, loops at
//   their exit, without knowing the graph. A group that spins (waiting for a lane at a higher pc)
//   gives way after kPatience instructions.
#include "machine.h"

#include <algorithm>
#include <bit>
#include <random>

namespace emu {
namespace {

constexpr int kPatience = 20000;  // instructions of one group before others get a turn

bool runnable(Warp& w, Group& g) {
    if (g.wait == Wait::kNone) return true;
    if (g.wait != Wait::kLanes) return false;
    const Instruction& in = w.machine->program->code[g.pc];
    uint32_t want = w.live;
    if (in.sync_mask >= 0)
        want &= static_cast<uint32_t>(lane_bits(w, in.ops[in.sync_mask], std::countr_zero(g.mask)));
    if (want & ~g.mask) return false;
    g.wait = Wait::kNone;
    return true;
}

// Joins groups that stand at one pc and are not held by a barrier.
void merge(Warp& w) {
    for (size_t i = 0; i < w.groups.size(); ++i)
        for (size_t j = i + 1; j < w.groups.size();) {
            Group &a = w.groups[i], &b = w.groups[j];
            if (a.pc == b.pc && a.wait <= Wait::kLanes && b.wait <= Wait::kLanes) {
                a.mask |= b.mask;
                w.groups.erase(w.groups.begin() + static_cast<std::ptrdiff_t>(j));
            } else {
                ++j;
            }
        }
}

Group* choose(Warp& w, const Group* tired) {
    Group* best = nullptr;
    for (Group& g : w.groups)
        if (&g != tired && runnable(w, g) && (!best || g.pc < best->pc)) best = &g;
    return best;
}

// Runs the warp until it blocks, ends or has had its turn. Returns the instructions done.
uint64_t run_warp(Warp& w, int turn) {
    const Instruction* code = w.machine->program->code.data();
    Counters& counters = w.machine->counters;
    uint64_t done = 0;
    int patience = kPatience;
    const Group* tired = nullptr;
    while (static_cast<int64_t>(done) < turn) {
        merge(w);
        Group* g = choose(w, tired);
        if (!g && tired) g = choose(w, nullptr);
        if (!g) break;
        tired = nullptr;
        bool alone = w.groups.size() == 1;
        for (;;) {
            const Instruction& in = code[g->pc];
            w.current = &in;
            uint32_t mask = g->mask;
            w.current_mask = mask;
            if (in.guard >= 0) {
                if (w.poison[in.guard] & mask)
                    w.fault(std::string("a guard predicate is uninitialised"),
                            std::countr_zero(w.poison[in.guard] & mask));
                uint32_t p = w.regs[int64_t{in.guard} * 32];
                mask &= in.guard_negated ? ~p : p;
            }
            ++done;
            if (!mask) {
                ++g->pc;
                if (!alone) break;
                continue;
            }
            if (in.aligned || in.sync_mask >= 0) {
                uint32_t want = w.live;
                if (in.sync_mask >= 0) {
                    const Operand& members = in.ops[in.sync_mask];
                    if (poisoned(w, members) & mask) w.fault("the member mask is uninitialised");
                    auto named =
                        static_cast<uint32_t>(lane_bits(w, members, std::countr_zero(mask)));
                    if (!(named & mask))
                        w.fault("a lane that the member mask does not name executes this");
                    want &= named;
                }
                if (want & ~mask) {
                    if (want & ~g->mask) {
                        g->wait = Wait::kLanes;
                        --done;
                        break;
                    }
                    if (in.aligned)
                        w.fault("only some lanes of the warp execute an .aligned instruction");
                    w.fault("lanes that the member mask names skip this by their guard");
                }
            }
            counters.by_class[static_cast<int>(in.kind)]++;
            w.current_mask = mask;
            Step step = in.handler(w, *g, in, mask);
            if (step == Step::kNext) {
                ++g->pc;
                if (!in.control && alone && --patience > 0 && static_cast<int64_t>(done) < turn)
                    continue;
            } else if (step == Step::kBranch) {
                int32_t target = in.ops[0].index;
                if (mask == g->mask) {
                    g->pc = target;
                } else {
                    g->mask &= ~mask;
                    ++g->pc;
                    w.groups.push_back({mask, target});
                }
            } else if (step == Step::kExit) {
                w.live &= ~mask;
                g->mask &= ~mask;
                ++g->pc;
                if (!g->mask) w.groups.erase(w.groups.begin() + (g - w.groups.data()));
            } else {
                ++g->pc;
                if (mask != g->mask)
                    w.fault("only some lanes of a group block here: their guard differs");
            }
            break;
        }
        if (--patience <= 0) {
            tired = w.groups.size() > 1 ? g : nullptr;
            patience = kPatience;
        }
    }
    counters.instructions += done;
    return done;
}

void release_barriers(Block& b) {
    uint32_t live = b.threads_live();
    for (int id = 0; id < 16; ++id) {
        Barrier& bar = b.barriers[id];
        uint32_t expected = bar.expected ? bar.expected : live;
        if (!bar.arrived || bar.arrived < expected) continue;
        for (Warp& w : b.warps)
            for (Group& g : w.groups)
                if (g.wait == Wait::kBarrier && g.barrier == id) {
                    g.wait = Wait::kNone;
                    w.clock.join(bar.clock);
                    const Instruction& in = w.machine->program->code[g.pc - 1];
                    if (in.mode[1] == 1)
                        for (int l = 0; l < 32; ++l)
                            if (g.mask >> l & 1) set_lane(w, in.ops[0], l, bar.reduction, false);
                    if (in.mode[1] > 1)
                        set_predicate(w, in.ops[0], bar.reduction ? ~0u : 0, g.mask, 0);
                }
        bar = Barrier();
    }
}

void deadlock(Block& b) {
    std::string text = "deadlock: no thread of the block can go on";
    Warp* first = nullptr;
    int told = 0;
    for (Warp& w : b.warps)
        for (Group& g : w.groups) {
            int32_t pc = g.wait == Wait::kBarrier ? g.pc - 1 : g.pc;
            if (!first)
                first = &w, w.current = &w.machine->program->code[pc], w.current_mask = g.mask;
            if (++told > 8) continue;
            char lanes[16];
            std::snprintf(lanes, sizeof lanes, "%08x", g.mask);
            text +=
                "\n  warp " + std::to_string(w.index) + " lanes " + lanes +
                (g.wait == Wait::kBarrier
                     ? " wait at barrier " + std::to_string(g.barrier) + " (" +
                           std::to_string(b.barriers[g.barrier].arrived) + " threads have arrived)"
                     : std::string(" wait for other lanes")) +
                ", PTX line " + std::to_string(w.machine->program->code[pc].line);
        }
    first->fault(text);
}

}  // namespace

uint32_t Block::threads_live() const {
    uint32_t n = 0;
    for (const Warp& w : warps) n += std::popcount(w.live);
    return n;
}

void Machine::run_block(Block& b) {
    uint32_t count = threads[0] * threads[1] * threads[2];
    b.machine = this;
    b.shared.assign(shared_bytes, 0xff);  // a NaN in every float format
    b.poison.assign(shared_bytes, 1);
    b.warps.resize((count + 31) / 32);
    if (check_races) {
        b.writers.assign(shared_bytes, {});
        b.readers.assign(shared_bytes * b.warps.size(), 0);
        b.reader_lane.assign(shared_bytes * b.warps.size(), 0);
    }
    for (size_t i = 0; i < b.warps.size(); ++i) {
        Warp& w = b.warps[i];
        w.machine = this, w.block = &b, w.index = static_cast<int>(i);
        w.registers.assign(static_cast<size_t>(program->rows + 1) * 32, 0xffffffffu);
        w.poison.assign(program->rows + 1, ~0u);
        w.regs = w.registers.data();
        uint32_t lanes = std::min<uint32_t>(32, count - static_cast<uint32_t>(i) * 32);
        w.live = lanes == 32 ? ~0u : (1u << lanes) - 1;
        w.groups = {{w.live, 0}};
        w.clock.at[i] = 2, w.lanes_synced = 1;
        if (program->local_bytes) {
            w.local.assign(static_cast<size_t>(program->local_bytes) * 32, 0xff);
            w.local_poison.assign(w.local.size(), 1);
        }
        for (size_t s = 0; s < special.size(); ++s) {
            for (int l = 0; l < 32; ++l) {
                uint32_t t = static_cast<uint32_t>(i) * 32 + l, value = 0;
                int axis = s % 3;
                switch (s / 3) {
                    case 0:
                        value = axis == 0   ? t % threads[0]
                                : axis == 1 ? t / threads[0] % threads[1]
                                            : t / threads[0] / threads[1];
                        break;
                    case 1: value = threads[axis]; break;
                    case 2: value = b.id[axis]; break;
                    case 3: value = grid[axis]; break;
                    case 4: value = 0; break;  // cluster_ctaid: clusters of one block
                    case 5: value = 1; break;  // cluster_nctaid
                    case 6: value = b.id[axis]; break;
                    case 7: value = grid[axis]; break;
                    default:
                        switch (s - 24) {
                            case 0: value = l; break;
                            case 1: value = static_cast<uint32_t>(i); break;
                            case 2: value = static_cast<uint32_t>(b.warps.size()); break;
                            case 3: value = 0; break;  // smid
                            case 4: value = 1; break;
                            case 5:
                            case 6:
                            case 7: value = 0; break;
                            case 8: value = 1; break;  // cluster_nctarank
                            case 9: value = dynamic_bytes; break;
                            case 10: value = shared_bytes; break;
                            case 11: value = 0; break;
                            case 12: value = 1u << l; break;
                            case 13: value = (1u << l) - 1; break;
                            case 14: value = (2u << l) - 1; break;
                            case 15: value = ~((2u << l) - 1); break;
                            case 16: value = ~((1u << l) - 1); break;
                            default: value = 0;
                        }
                }
                uint32_t* row = w.regs + int64_t{special[s]} * 32;
                if (s >= 24 + 17)
                    reinterpret_cast<uint64_t*>(row)[l] = value;
                else
                    row[l] = value;
            }
            w.poison[special[s]] = 0;
        }
    }
    std::vector<int> order(b.warps.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
    std::mt19937_64 random(seed * 0x9e3779b97f4a7c15ull + b.linear);
    uint64_t spent = 0;
    while (b.threads_live()) {
        if (seed) std::shuffle(order.begin(), order.end(), random);
        uint64_t done = 0;
        for (int i : order) {
            done += run_warp(b.warps[i], kPatience);
            release_barriers(b);
        }
        spent += done;
        bool any = false;
        for (Warp& w : b.warps)
            for (Group& g : w.groups) any |= runnable(w, g);
        if (!any && b.threads_live()) deadlock(b);
        if (limit && spent > limit)
            b.warps[0].fault(
                "the block has run " + std::to_string(spent) +
                " instructions: an endless loop, or a wait for a block that does not run");
    }
}

void Machine::run() {
    uint64_t blocks = uint64_t{grid[0]} * grid[1] * grid[2];
    for (uint64_t i = 0; i < blocks; ++i) {
        Block b;
        b.linear = i;
        b.id[0] = static_cast<uint32_t>(i % grid[0]);
        b.id[1] = static_cast<uint32_t>(i / grid[0] % grid[1]);
        b.id[2] = static_cast<uint32_t>(i / grid[0] / grid[1]);
        run_block(b);
    }
}

}  // namespace emu
