// The scheduler: groups of lanes within a warp, warps within a block, some blocks at a time.
//
//   A warp is a list of groups (lanes, pc). The runnable group with the smallest pc runs; groups
//   that meet at one pc become one: so both sides of a branch come together at its end, loops at
//   their exit, without knowing the graph. A group that spins (waiting for a lane at a higher pc)
//   gives way after kPatience instructions.
//
//   Blocks start in order. One that is not done after kSlot instructions (it may be waiting for
//   another) shares the machine with the next, up to `resident` blocks. With a seed, blocks start
//   together, in a shuffled order within windows of that many, and their warps take turns of random
//   length in random order.
#include "machine.h"

#include <algorithm>
#include <bit>
#include <list>

namespace emu {
namespace {

constexpr int kPatience = 20000;     // instructions of one group before others get a turn
constexpr uint64_t kSlot = 1000000;  // of one block before another may start beside it

// Of these lanes, at an instruction with a member mask, those that can execute it together: all
// live lanes that one mask names are here, with that mask. 0: none can yet.
uint32_t members_together(const Warp& w, const Instruction& in, uint32_t mask) {
    const Operand& members = in.ops[in.sync_mask];
    for (uint32_t rest = mask; rest;) {
        auto named = static_cast<uint32_t>(lane_bits(w, members, std::countr_zero(rest)));
        uint32_t same = 0;
        for (int l = 0; l < 32; ++l)
            if ((rest >> l & 1) && static_cast<uint32_t>(lane_bits(w, members, l)) == named)
                same |= 1u << l;
        if (same & ~named) w.fault("a lane that the member mask does not name executes this");
        if (!(w.live & named & ~same)) return same;
        rest &= ~same;
    }
    return 0;
}

bool runnable(Warp& w, Group& g) {
    if (g.wait == Wait::kNone) return true;
    if (g.wait == Wait::kMbarrier) {
        if (!phase_ended(*w.block, g.address, g.phase)) return false;
        g.wait = Wait::kNone;
        return true;
    }
    if (g.wait == Wait::kWarpgroup) {
        if (!warpgroup_committed(w, g.phase)) return false;
        g.wait = Wait::kNone;
        return true;
    }
    if (g.wait != Wait::kLanes) return false;
    const Instruction& in = w.machine->program->code[g.pc];
    bool together = in.sync_mask >= 0 ? members_together(w, in, g.mask) != 0 : g.mask == w.live;
    if (together) g.wait = Wait::kNone;
    return together;
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

// Lets go who waits at a barrier that is full.
void release_barriers(Block& b) {
    uint32_t live = b.threads_live();
    for (int id = 0; id < 16; ++id) {
        Barrier& bar = b.barriers[id];
        uint32_t expected = bar.expected ? bar.expected : live;
        if (!bar.arrived || bar.arrived < expected) continue;
        for (Warp& w : b.warps) {
            uint32_t lanes = 0;
            for (Group& g : w.groups)
                if (g.wait == Wait::kBarrier && g.barrier == id) {
                    g.wait = Wait::kNone;
                    lanes |= g.mask;
                    w.clock.join(bar.clock);
                    const Instruction& in = w.machine->program->code[g.pc - 1];
                    if (in.mode[1] == 1)
                        for (int l = 0; l < 32; ++l)
                            if (g.mask >> l & 1) set_lane(w, in.ops[0], l, bar.reduction, false);
                    if (in.mode[1] > 1)
                        set_predicate(w, in.ops[0], bar.reduction ? ~0u : 0, g.mask, 0);
                }
            if (lanes) w.sync_lanes(lanes);
        }
        bar = Barrier();
    }
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
            if (in.sync_mask >= 0) {
                if (poisoned(w, in.ops[in.sync_mask]) & mask)
                    w.fault("the member mask is uninitialised");
                uint32_t together = members_together(w, in, mask);
                if (!together && members_together(w, in, g->mask))
                    w.fault("lanes that the member mask names skip this by their guard");
                if (!together) {
                    g->wait = Wait::kLanes;
                    --done;
                    break;
                }
                if (uint32_t later = mask & ~together) {  // under another mask
                    g->mask &= ~later, mask = together, alone = false;
                    auto place = g - w.groups.data();
                    w.groups.push_back({.mask = later, .pc = g->pc});
                    g = &w.groups[static_cast<size_t>(place)];
                }
            } else if (in.aligned && mask != w.live) {
                if (g->mask == w.live)
                    w.fault("only some lanes of the warp execute an .aligned instruction");
                g->wait = Wait::kLanes;
                --done;
                break;
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
                    w.groups.push_back({.mask = mask, .pc = target});
                }
            } else if (step == Step::kExit) {
                w.live &= ~mask;
                g->mask &= ~mask;
                ++g->pc;
                if (!g->mask) w.groups.erase(w.groups.begin() + (g - w.groups.data()));
            } else if (step == Step::kBlock) {
                ++g->pc;
                if (mask != g->mask)
                    w.fault("only some lanes of a group block here: their guard differs");
            }
            // at once: an arrival that follows belongs to the barrier's next phase
            if (in.kind == Class::kBarrier) release_barriers(*w.block);
            break;
        }
        if (--patience <= 0) {
            tired = w.groups.size() > 1 ? g : nullptr;
            patience = kPatience;
        }
    }
    counters.instructions += done;
    w.spent += done;
    return done;
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
                 : g.wait == Wait::kMbarrier
                     ? " wait for phase " + std::to_string(g.phase) + " of the mbarrier at " +
                           hex(g.address) + describe(b.mbarriers.at(g.address))
                 : g.wait == Wait::kWarpgroup
                     ? std::string(" wait for the other warps of the warpgroup to issue a wgmma")
                     : std::string(" wait for other lanes")) +
                ", PTX line " + std::to_string(w.machine->program->code[pc].line);
        }
    first->fault(text);
}

}  // namespace

void Warp::sync_lanes(uint32_t mask) {
    Clock now = clock.at[index]++;
    if (!(live & ~mask)) {
        lanes_synced = now;
        return;
    }
    if (!pairs_synced) pairs_synced = std::make_unique<std::array<std::array<Clock, 32>, 32>>();
    for (int l = 0; l < 32; ++l)
        for (int other = 0; other < 32; ++other)
            if ((mask >> l & 1) && (mask >> other & 1)) (*pairs_synced)[l][other] = now;
}

uint32_t Block::threads_live() const {
    uint32_t n = 0;
    for (const Warp& w : warps) n += std::popcount(w.live);
    return n;
}

// The value of the special register at place s of ptx.SPECIAL.
static uint64_t special_value(const Block& b, uint32_t warp, uint32_t lane, size_t s) {
    const Machine& m = *b.machine;
    uint32_t thread = warp * 32 + lane, axis = s % 3;
    const uint32_t* n = m.threads;
    const uint32_t tid[] = {thread % n[0], thread / n[0] % n[1], thread / n[0] / n[1]};
    // tid, ntid, ctaid, nctaid, then of clusters of one block each
    const uint32_t* triples[] = {tid, n, b.id, m.grid, nullptr, nullptr, b.id, m.grid};
    if (s < 24) return triples[s / 3] ? triples[s / 3][axis] : s / 3 == 5;
    const uint64_t below = (1ull << lane) - 1, upto = (2ull << lane) - 1;
    const uint64_t rest[] = {
        lane,           warp, b.warps.size(), 0,     1,    0,     0,     0, 1, m.dynamic_bytes,
        m.shared_bytes, 0,    1ull << lane,   below, upto, ~upto, ~below};
    return s - 24 < std::size(rest) ? static_cast<uint32_t>(rest[s - 24]) : 0;
}

Block::Block(Machine& m, uint64_t number)
    : machine(&m), linear(number), random(m.seed * 0x9e3779b97f4a7c15ull + number) {
    id[0] = static_cast<uint32_t>(number % m.grid[0]);
    id[1] = static_cast<uint32_t>(number / m.grid[0] % m.grid[1]);
    id[2] = static_cast<uint32_t>(number / m.grid[0] / m.grid[1]);
    uint32_t count = m.threads[0] * m.threads[1] * m.threads[2];
    const Program& program = *m.program;
    shared.assign(m.shared_bytes, 0xff);  // a NaN in every float format
    poison.assign(m.shared_bytes, 1);
    warps.resize((count + 31) / 32);
    if (m.check_races) {
        writers.assign(m.shared_bytes, {});
        readers.assign(m.shared_bytes * warps.size(), {});
    }
    for (size_t i = 0; i < warps.size(); ++i) {
        Warp& w = warps[i];
        w.machine = &m, w.block = this, w.index = static_cast<int>(i);
        w.registers.assign(static_cast<size_t>(program.rows + 1) * 32, 0xffffffffu);
        w.poison.assign(program.rows + 1, ~0u);
        w.regs = w.registers.data();
        uint32_t lanes = std::min<uint32_t>(32, count - static_cast<uint32_t>(i) * 32);
        w.live = lanes == 32 ? ~0u : (1u << lanes) - 1;
        w.groups = {Group{.mask = w.live}};
        w.clock.at[i] = 2, w.lanes_synced = 1;
        if (program.local_bytes) {
            w.local.assign(static_cast<size_t>(program.local_bytes) * 32, 0xff);
            w.local_poison.assign(w.local.size(), 1);
        }
        for (size_t s = 0; s < m.special.size(); ++s) {
            bool wide = s + 2 >= m.special.size();  // clock64, globaltimer
            for (uint32_t l = 0; l < 32; ++l) {
                uint64_t value = special_value(*this, static_cast<uint32_t>(i), l, s);
                uint32_t* row = w.regs + int64_t{m.special[s]} * 32;
                if (wide)
                    reinterpret_cast<uint64_t*>(row)[l] = value;
                else
                    row[l] = static_cast<uint32_t>(value);
            }
            w.poison[m.special[s]] = 0;
        }
    }
}

bool Block::turn() {
    std::vector<size_t> order(warps.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    if (machine->seed) std::shuffle(order.begin(), order.end(), random);
    for (size_t i : order) {
        int length = machine->seed ? 1 + static_cast<int>(random() % 500) : kPatience;
        spent += run_warp(warps[i], length);
        release_barriers(*this);
    }
    if (!threads_live()) {
        for (Warp& w : warps) {
            check_ended(w);
            machine->counters.busiest_warp = std::max(machine->counters.busiest_warp, w.spent);
        }
        machine->counters.warps += warps.size();
        return false;
    }
    bool any = false;
    for (Warp& w : warps)
        for (Group& g : w.groups) any |= runnable(w, g);
    if (!any) deadlock(*this);
    if (machine->limit && spent > machine->limit) {
        auto running = std::find_if(warps.begin(), warps.end(), [](Warp& w) { return w.live; });
        running->fault("the block has run " + std::to_string(spent) +
                       " instructions: an endless loop, or a wait for a block that does not run");
    }
    return true;
}

void Machine::run() {
    uint64_t blocks = uint64_t{grid[0]} * grid[1] * grid[2], next = 0;
    std::vector<uint64_t> order(blocks);
    for (uint64_t i = 0; i < blocks; ++i) order[i] = i;
    std::mt19937_64 random(seed);
    for (uint64_t i = 0; seed && i < blocks; i += resident)
        std::shuffle(order.begin() + static_cast<std::ptrdiff_t>(i),
                     order.begin() + static_cast<std::ptrdiff_t>(std::min(i + resident, blocks)),
                     random);
    std::list<Block> running;
    while (next < blocks || !running.empty()) {
        if (next < blocks && running.size() < resident) running.emplace_back(*this, order[next++]);
        running.remove_if([&](Block& b) {
            for (uint64_t end = b.spent + (seed ? 1 : kSlot); b.spent < end;)
                if (!b.turn()) return true;
            return false;
        });
    }
}

}  // namespace emu
