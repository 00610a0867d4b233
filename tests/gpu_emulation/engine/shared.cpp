// Shared memory's shadow: which bytes hold a value, who wrote them, who has read them since.
//
// An access races with an earlier one of another thread, one of the two writing, unless something
// orders them: a barrier, an mbarrier, an atomic, or (within a warp) a warp-level barrier. Each
// warp keeps a vector clock; a byte remembers the last writer's clock and each warp's last reading.
// Source: vector clocks as in FastTrack (Flanagan and Freund, PLDI 2009), whole read vectors.
//
// Bulk copies and wgmma reach shared memory through the asynchronous proxy: what a thread wrote is
// theirs only once a fence.proxy.async lies between (PTX ISA, "Memory Consistency Model: Proxies").
#include <algorithm>
#include <bit>
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

std::string hex(uint64_t value) {
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

// In place of the writer's lane: it was an atomic.
static constexpr uint8_t kAtomicLane = 0xff;

[[noreturn]] static void race(Warp& w, int lane, uint32_t at, const char* what, int warp,
                              int other) {
    w.fault(std::string("race on shared byte ") + hex(at) + ": " + what +
                (warp == kAsync ? std::string(" a bulk copy with no wait for its mbarrier between")
                                : " warp " + std::to_string(warp) +
                                      (other == kAtomicLane ? std::string()
                                                            : " lane " + std::to_string(other)) +
                                      " with no barrier between"),
            lane);
}

static bool ordered(const Warp& w, int lane, int warp, int other, Clock then) {
    if (warp != w.index) return w.clock.at[warp] >= then;
    return other == kAtomicLane ? then <= w.lanes_synced : w.saw(lane, other, then);
}

// The lanes among the readers whose reading does not come before this lane's access.
static uint32_t unordered(const Warp& w, int lane, int warp, const Reader& r) {
    if (warp != w.index) return w.clock.at[warp] >= r.clock ? 0 : r.lanes;
    if (r.clock <= w.lanes_synced) return 0;
    uint32_t out = 0;
    for (uint32_t rest = r.lanes; rest; rest &= rest - 1) {
        int other = std::countr_zero(rest);
        if (!w.saw(lane, other, r.clock)) out |= 1u << other;
    }
    return out;
}

// Neighbouring bytes mostly share their history: one look then serves all of them.
template <class T>
static bool all_same(const T* first, uint32_t n) {
    return !std::memcmp(first, first + 1, (n - 1) * sizeof(T));
}

void shared_read(Warp& w, int lane, uint32_t at, uint32_t size) {
    Block& b = *w.block;
    if (!w.machine->check_races) return;
    const Writer* writers = b.writers.data() + at;
    for (uint32_t i = 0; i < (all_same(writers, size) ? 1 : size); ++i)
        if (writers[i].clock &&
            !ordered(w, lane, writers[i].warp, writers[i].lane, writers[i].clock))
            race(w, lane, at + i, "read here, written by", writers[i].warp, writers[i].lane);
    // a reading that comes before this one needs no memory of its own any more
    Reader* readers = b.readers.data() + w.index * b.shared.size() + at;
    auto fresh = [&](const Reader& r) {
        uint32_t others = r.clock == w.now() ? r.lanes : unordered(w, lane, w.index, r);
        return Reader{w.now(), others | 1u << lane};
    };
    if (all_same(readers, size))
        std::fill_n(readers, size, fresh(*readers));
    else
        for (uint32_t i = 0; i < size; ++i) readers[i] = fresh(readers[i]);
}

// The bytes may be written now: whoever wrote or read them came before. alike: bytes that already
// hold what is written, or were written by an atomic as now, need no order.
template <class F>
static void check_write(Warp& w, int lane, uint32_t at, uint32_t size, F alike) {
    Block& b = *w.block;
    const Writer* writers = b.writers.data() + at;
    for (uint32_t i = 0; i < (all_same(writers, size) ? 1 : size); ++i) {
        const Writer& last = writers[i];
        if (!last.clock || ordered(w, lane, last.warp, last.lane, last.clock)) continue;
        for (uint32_t j = i; j < (all_same(writers, size) ? size : i + 1); ++j)
            if (!alike(j)) race(w, lane, at + j, "written here and by", last.warp, last.lane);
    }
    for (size_t r = 0; r < b.warps.size(); ++r) {
        uint32_t own = static_cast<int>(r) == w.index ? 1u << lane : 0;
        const Reader* readers = b.readers.data() + r * b.shared.size() + at;
        for (uint32_t i = 0; i < (all_same(readers, size) ? 1 : size); ++i)
            if (uint32_t lanes = unordered(w, lane, static_cast<int>(r), readers[i]) & ~own)
                race(w, lane, at + i, "written here, read by", static_cast<int>(r),
                     std::countr_zero(lanes));
    }
}

void shared_write(Warp& w, int lane, uint32_t at, uint32_t size, const void* value) {
    Block& b = *w.block;
    if (!w.machine->check_races) return;
    auto* bytes = static_cast<const uint8_t*>(value);
    check_write(w, lane, at, size,
                [&](uint32_t i) { return bytes && bytes[i] == b.shared[at + i]; });
    std::fill_n(b.writers.data() + at, size,
                Writer{w.now(), static_cast<uint8_t>(w.index), static_cast<uint8_t>(lane)});
}

void shared_atomic(Warp& w, int lane, uint32_t at, uint32_t size) {
    Block& b = *w.block;
    if (!w.machine->check_races) return;
    check_write(w, lane, at, size,
                [&](uint32_t i) { return b.writers[at + i].lane == kAtomicLane; });
    std::fill_n(b.writers.data() + at, size,
                Writer{w.now(), static_cast<uint8_t>(w.index), kAtomicLane});
}

// A thread's write comes before what the asynchronous proxy does only by way of a fence.
static void check_proxy(Warp& w, int lane, uint32_t at, const Writer& last, const char* what) {
    if (last.clock && last.warp != kAsync && w.clock.proxied[last.warp] < last.clock)
        w.fault("shared byte " + hex(at) + " was written by warp " + std::to_string(last.warp) +
                    " and is " + what + " asynchronously with no fence.proxy.async between",
                lane);
}

void async_write(Warp& w, int lane, uint32_t at, uint32_t size, Clock stamp) {
    Block& b = *w.block;
    if (w.machine->check_races) {
        check_write(w, lane, at, size, [](uint32_t) { return false; });
        const Writer* writers = b.writers.data() + at;
        for (uint32_t i = 0; i < (all_same(writers, size) ? 1 : size); ++i)
            check_proxy(w, lane, at + i, writers[i], "overwritten");
        std::fill_n(b.writers.data() + at, size, Writer{stamp, kAsync, static_cast<uint8_t>(lane)});
    }
    std::memset(b.poison.data() + at, 1, size);
}

void check_async_read(Warp& w, int lane, uint32_t at, uint32_t size) {
    Block& b = *w.block;
    if (shared_poison(w, at, size))
        w.fault("shared bytes at " + hex(at) +
                    " are read asynchronously, uninitialised or not arrived yet",
                lane);
    if (!w.machine->check_races) return;
    const Writer* writers = b.writers.data() + at;
    for (uint32_t i = 0; i < (all_same(writers, size) ? 1 : size); ++i) {
        const Writer& last = writers[i];
        if (last.clock && !ordered(w, lane, last.warp, last.lane, last.clock))
            race(w, lane, at + i, "read here asynchronously, written by", last.warp, last.lane);
        check_proxy(w, lane, at + i, last, "read");
    }
}

}  // namespace emu
