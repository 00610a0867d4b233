// Shared memory's shadow: which bytes hold a value, who wrote them, who has read them since.
//
// An access races with an earlier one of another thread, one of the two writing, unless something
// orders them: a barrier, an mbarrier, an atomic, or (within a warp) a warp-level barrier. Each
// warp keeps a vector clock; a byte remembers the last writer's clock and each warp's last reading.
// Source: Lamport clocks as in FastTrack (PLDI 2009), whole read vectors.
#include <algorithm>
#include <cstdio>

#include "machine.h"

namespace emu {

std::string place(const Warp& w, const Instruction& in) {
    const Machine& m = *w.machine;
    std::string out = "kernel " + m.program->name + ", PTX line " + std::to_string(in.line) + " (" +
                      m.program->opcodes[in.opcode] + ")";
    if (in.source_line)
        out += ", source line " + std::to_string(in.source_line) + " of file " +
               std::to_string(in.file);
    return out;
}

void Warp::fault(const std::string& what, int lane) const {
    if (lane < 0 && current_mask) lane = __builtin_ctz(current_mask);
    const uint32_t* n = machine->threads;
    uint32_t thread = index * 32 + std::max(lane, 0);
    char where[160];
    std::snprintf(where, sizeof where, ", block (%u, %u, %u), thread (%u, %u, %u)", block->id[0],
                  block->id[1], block->id[2], thread % n[0], thread / n[0] % n[1],
                  thread / n[0] / n[1]);
    throw Fault(what + "\n  at " + place(*this, *current) + where);
}

static std::string hex(uint64_t value) {
    char text[32];
    std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
    return text;
}

void check_shared(Warp& w, int lane, uint64_t at, uint64_t size, uint64_t align) {
    uint64_t have = w.block->shared.size();
    if (at % align)
        w.fault("misaligned shared address " + hex(at) + ": " + std::to_string(size) +
                    " bytes need a multiple of " + std::to_string(align),
                lane);
    if (at >= have || size > have - at)
        w.fault("shared address " + hex(at) + " is out of bounds: " + std::to_string(size) +
                    " bytes, the block has " + std::to_string(have),
                lane);
}

bool shared_poison(const Warp& w, uint32_t at, uint32_t size) {
    const uint8_t* p = w.block->poison.data() + at;
    uint8_t any = 0;
    for (uint32_t i = 0; i < size; ++i) any |= p[i];
    return any;
}

static void race(Warp& w, int lane, uint32_t at, const char* what, int warp, int other) {
    w.fault(std::string("race on shared byte ") + hex(at) + ": " + what +
                (warp == kMaxWarps
                     ? std::string(" an asynchronous copy")
                     : " warp " + std::to_string(warp) + " lane " + std::to_string(other)) +
                " with no barrier between",
            lane);
}

static bool ordered(const Warp& w, int lane, int warp, int other, Clock then) {
    if (warp != w.index) return w.clock.at[warp] >= then;
    return other == lane || then <= w.lanes_synced;
}

static constexpr uint8_t kManyLanes = 0xff;

void shared_read(Warp& w, int lane, uint32_t at, uint32_t size) {
    Block& b = *w.block;
    if (!w.machine->check_races) return;
    Clock* mine = b.readers.data() + w.index * b.shared.size();
    uint8_t* who = b.reader_lane.data() + w.index * b.shared.size();
    for (uint32_t i = at; i < at + size; ++i) {
        const Writer& last = b.writers[i];
        if (last.clock && !ordered(w, lane, last.warp, last.lane, last.clock))
            race(w, lane, i, "read here, written by", last.warp, last.lane);
        who[i] = mine[i] == w.now() && who[i] != lane ? kManyLanes : static_cast<uint8_t>(lane);
        mine[i] = w.now();
    }
}

void shared_write(Warp& w, int lane, uint32_t at, uint32_t size, const void* value) {
    Block& b = *w.block;
    if (!w.machine->check_races) return;
    size_t bytes = b.shared.size();
    for (uint32_t i = at; i < at + size; ++i) {
        Writer& last = b.writers[i];
        // threads that store the same value to one place: whichever comes last, it is there
        bool alike = value && static_cast<const uint8_t*>(value)[i - at] == b.shared[i];
        if (last.clock && !alike && !ordered(w, lane, last.warp, last.lane, last.clock))
            race(w, lane, i, "written here and by", last.warp, last.lane);
        for (size_t r = 0; r < b.warps.size(); ++r) {
            Clock then = b.readers[r * bytes + i];
            uint8_t who = b.reader_lane[r * bytes + i];
            if (then && !ordered(w, lane, static_cast<int>(r), who, then))
                race(w, lane, i, "written here, read by", static_cast<int>(r), who);
        }
        last = {w.now(), static_cast<uint8_t>(w.index), static_cast<uint8_t>(lane)};
    }
}

uint8_t* global_at(Warp& w, int lane, uint64_t at, uint64_t size, bool writing) {
    Machine& m = *w.machine;
    Buffer* b = m.find(at);
    if (!b || size > b->size - (at - b->base)) {
        std::string what = std::string(writing ? "write" : "read") + " of " + std::to_string(size) +
                           " bytes at " + hex(at) + " is out of bounds";
        const Buffer* nearest = nullptr;
        uint64_t best = ~0ull;
        for (const Buffer& c : m.buffers) {
            uint64_t distance = at < c.base            ? c.base - at
                                : at - c.base < c.size ? 0
                                                       : at - c.base - c.size;
            if (distance < best) best = distance, nearest = &c;
        }
        if (nearest) {
            int64_t offset = static_cast<int64_t>(at - nearest->base);
            what += ": byte " + std::to_string(offset) + " of " + nearest->name + ", which has " +
                    std::to_string(nearest->size);
        }
        w.fault(what, lane);
    }
    if (at % size && (size & (size - 1)) == 0)
        w.fault("misaligned address " + hex(at) + " for " + std::to_string(size) + " bytes of " +
                    b->name,
                lane);
    if (writing && !b->writable)
        w.fault("write to " + b->name + ", which was passed read-only", lane);
    return b->host + (at - b->base);
}

}  // namespace emu
