// Global memory: bounds, traffic, and races between threads of a block and between blocks.
//
// A byte remembers who wrote it last. Reading or writing it races unless the writer's store came
// before: by a barrier within the block, or between blocks by way of an atomic (or a load and a
// store with an order) on one address. An order is taken as acquire and release at once, whatever
// it says and whether a fence stands beside it: memory weaker than sequential is not modelled.
#include <algorithm>
#include <bit>

#include "machine.h"

namespace emu {

void check_aligned(Warp& w, int lane, uint64_t at, uint64_t size) {
    if (at % size == 0) return;
    const Buffer* b = w.machine->find(at);
    w.fault("misaligned address " + hex(at) + " for " + std::to_string(size) + " bytes" +
                (b ? " of " + b->name : ""),
            lane);
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
    if (writing && !b->writable)
        w.fault("write to " + b->name + ", which was passed read-only", lane);
    return b->host + (at - b->base);
}

static std::string who(const Warp& w, const GlobalWriter& last) {
    const uint32_t* n = w.machine->grid;
    uint64_t b = last.block - 1;
    return "block (" + std::to_string(b % n[0]) + ", " + std::to_string(b / n[0] % n[1]) + ", " +
           std::to_string(b / n[0] / n[1]) + ") warp " + std::to_string(last.warp) + " lane " +
           std::to_string(last.lane);
}

static bool ordered(const Warp& w, int lane, const GlobalWriter& last) {
    if (last.block == 0) return true;
    if (last.block == w.block->linear + 1) {
        if (last.warp != static_cast<uint32_t>(w.index)) return w.clock.at[last.warp] >= last.clock;
        return w.saw(lane, static_cast<int>(last.lane), last.clock);
    }
    auto seen = w.clock.others.find(last.block - 1);
    return seen != w.clock.others.end() && seen->second[last.warp] >= last.clock;
}

[[noreturn]] static void race(Warp& w, int lane, const Buffer& b, uint64_t offset,
                              const char* what) {
    w.fault("race on byte " + std::to_string(offset) + " of " + b.name + ": " + what + " " +
                who(w, b.writers[offset]) + " with nothing that orders the two",
            lane);
}

uint8_t* global_write(Warp& w, int lane, uint64_t at, uint64_t size, const void* value) {
    uint8_t* p = global_at(w, lane, at, size, true);
    Buffer& b = *w.machine->find(at);
    if (b.writers.empty()) {
        if (!w.machine->check_races) return p;
        b.writers.resize(b.size);  // at the first write: most buffers are only read
    }
    for (uint64_t i = at - b.base; i < at - b.base + size; ++i) {
        GlobalWriter& last = b.writers[i];
        bool alike = value && static_cast<const uint8_t*>(value)[i - (at - b.base)] == b.host[i];
        if (w.machine->check_races && !alike && !ordered(w, lane, last))
            race(w, lane, b, i, "written here and by");
        last.clock = w.now(), last.block = static_cast<uint32_t>(w.block->linear + 1);
        last.warp = static_cast<uint32_t>(w.index), last.lane = static_cast<uint32_t>(lane);
    }
    return p;
}

const uint8_t* global_read(Warp& w, int lane, uint64_t at, uint64_t size, uint64_t* poison) {
    const uint8_t* p = global_at(w, lane, at, size, false);
    Buffer& b = *w.machine->find(at);
    if (poison) *poison = 0;
    if (b.writers.empty()) return p;
    for (uint64_t i = 0; i < size; ++i) {
        const GlobalWriter& last = b.writers[at - b.base + i];
        if (w.machine->check_races && !ordered(w, lane, last))
            race(w, lane, b, at - b.base + i, "read here, written by");
        if (poison && b.uninitialised && !last.block) *poison |= 1ull << i;
    }
    return p;
}

void release(Warp& w, uint64_t at) {
    Clocks& seen = w.machine->released[at];
    seen.join_block(w.block->linear, w.clock.at);
    for (auto& [block, theirs] : w.clock.others) seen.join_block(block, theirs.data());
    w.tick();
}

void acquire(Warp& w, uint64_t at) {
    auto found = w.machine->released.find(at);
    if (found == w.machine->released.end()) return;
    for (auto& [block, theirs] : found->second.others) {
        if (block != w.block->linear)
            w.clock.join_block(block, theirs.data());
        else
            for (int i = 0; i < kMaxWarps; ++i) w.clock.at[i] = std::max(w.clock.at[i], theirs[i]);
    }
}

// One row of a bulk copy: a request of its own. What lies outside is found when it is copied.
void count_row(Buffer& b, uint64_t at, uint64_t size, bool writing) {
    if (at - b.base > b.size || size > b.size - (at - b.base)) return;
    for (uint64_t i = at - b.base; i < at - b.base + size; ++i)
        b.touched[writing][i / 64] |= 1ull << (i % 64);
    b.requests[writing]++;
    b.asked[writing] += size;
    b.sectors[writing] += (at + size - 1) / 32 - at / 32 + 1;
    b.lines[writing] += (at + size - 1) / 128 - at / 128 + 1;
}

void count_global(Warp& w, const uint64_t* at, uint32_t mask, uint32_t size, bool writing) {
    Buffer* b = w.machine->find(at[std::countr_zero(mask)]);
    if (!b) return;
    uint64_t sectors[64], lines[64];
    int count = 0;
    for (int l = 0; l < 32; ++l) {
        if (!(mask >> l & 1)) continue;
        for (uint64_t s = at[l] / 32; s <= (at[l] + size - 1) / 32 && count < 64; ++s)
            sectors[count++] = s;
        uint64_t first = at[l] - b->base;
        if (first < b->size)
            for (uint64_t i = first; i < first + size; ++i)
                b->touched[writing][i / 64] |= 1ull << (i % 64);
    }
    b->requests[writing]++;
    b->asked[writing] += static_cast<uint64_t>(std::popcount(mask)) * size;
    std::sort(sectors, sectors + count);
    count = static_cast<int>(std::unique(sectors, sectors + count) - sectors);
    for (int i = 0; i < count; ++i) lines[i] = sectors[i] / 4;
    b->sectors[writing] += count;
    b->lines[writing] += std::unique(lines, lines + count) - lines;
}

}  // namespace emu
