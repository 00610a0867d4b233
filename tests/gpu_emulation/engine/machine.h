// The machine's state: buffers in a guarded address space, blocks with their shared memory, warps
// with their lanes.
//
//   warp's register file: rows of 32 lanes x 32 bits      poison: one bit a lane and row
//     row r    | l0 | l1 | ... | l31 |                      uint32_t poison[r]
//     64 bits: two rows read as 32 x uint64_t               (of its first row)
//     predicate: word 0 of its row holds a bit a lane
//
//   addresses: global buffers at kGlobal + i * (size + 64 MiB); windows for shared, local and
//   parameters below.
#pragma once
#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "program.h"

namespace emu {

constexpr uint64_t kSharedWindow = 1ull << 40, kLocalWindow = 2ull << 40, kParamWindow = 3ull << 40,
                   kWindow = 1ull << 40;
constexpr uint64_t kGlobal = 16ull << 40, kGap = 64ull << 20;
constexpr int kMaxWarps = 32;

struct Fault : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Who wrote a byte of global memory last: block + 1 (0: nobody), warp, lane, and when on its clock.
struct GlobalWriter {
    uint32_t clock = 0, block : 22 = 0, warp : 5 = 0, lane : 5 = 0;
};

struct Buffer {
    std::string name;
    uint64_t base = 0, size = 0;
    uint8_t* host = nullptr;
    bool writable = true, uninitialised = false;
    std::vector<uint64_t> touched[2];  // a bit a byte: read, written
    std::vector<GlobalWriter> writers;
    uint64_t asked[2] = {}, sectors[2] = {}, lines[2] = {}, requests[2] = {};
};

struct Counters {
    uint64_t by_class[static_cast<int>(Class::kCount)] = {};
    uint64_t instructions = 0, macs = 0, sparse_macs = 0, atomics = 0, barriers = 0;
    uint64_t warps = 0, busiest_warp = 0;  // how many ran; instructions of that with most
    uint64_t shared_wavefronts[2] = {}, shared_ideal[2] = {};  // reads, writes
    uint64_t ldmatrix_wavefronts = 0, ldmatrix_ideal = 0, async_wavefronts = 0, async_ideal = 0;
};

using Clock = uint32_t;
constexpr int kAsync = kMaxWarps;  // the writer "asynchronous copy" beside the warps

// What somebody has seen: of each warp's accesses, all those stamped up to at[warp] and of copies
// all up to at[kAsync]; up to proxied[warp] a fence.proxy.async lies between the warp's write and
// here; of other blocks what an atomic, or a load or store with an order, let through.
struct Clocks {
    Clock at[kMaxWarps + 1] = {}, proxied[kMaxWarps] = {};
    std::map<uint64_t, std::array<Clock, kMaxWarps>> others;

    void join(const Clocks& other) {
        for (int i = 0; i <= kMaxWarps; ++i) at[i] = std::max(at[i], other.at[i]);
        for (int i = 0; i < kMaxWarps; ++i) proxied[i] = std::max(proxied[i], other.proxied[i]);
        for (auto& [block, theirs] : other.others) join_block(block, theirs.data());
    }
    void join_block(uint64_t block, const Clock* theirs) {
        auto& mine = others.try_emplace(block).first->second;
        for (int i = 0; i < kMaxWarps; ++i) mine[i] = std::max(mine[i], theirs[i]);
    }
};

// Why a group of lanes does not run.
enum class Wait : uint8_t { kNone, kLanes, kBarrier, kMbarrier, kWarpgroup };

struct Group {
    uint32_t mask = 0;
    int32_t pc = 0;
    Wait wait = Wait::kNone;
    int32_t barrier = 0;   // kBarrier: its number
    uint32_t address = 0;  // kMbarrier: where it lies and the phase that must end
    uint64_t phase = 0;    // kWarpgroup: how many groups must be committed
};

// One cp.async of one lane, landing when its group is waited for.
struct PendingCopy {
    uint32_t address, size;
    uint8_t data[16];
};

// cp.async of one lane: issued but not committed, and committed groups, oldest first.
struct AsyncCopies {
    std::vector<PendingCopy> open;
    std::vector<std::vector<PendingCopy>> sent;
};

// What a bulk copy moves: pieces of at most a row, each with its place in shared memory; one
// outside the tensor has no place in global memory (zeros are loaded, nothing is stored).
struct BulkCopy {
    struct Piece {
        uint64_t global;  // 0: outside
        uint32_t shared, bytes;
    };
    std::vector<Piece> pieces;
    uint32_t total = 0;
    int lane = 0;
    Clock stamp = 0;
    uint8_t warp = 0, fill = 0;  // fill: the byte that stands for what is outside
    const Instruction* from = nullptr;
};

// An mbarrier object (PTX ISA, "Parallel Synchronization: mbarrier").
struct Mbarrier {
    uint32_t expected = 0, pending = 0;
    int64_t bytes = 0;  // expected minus arrived of this phase
    uint64_t phase = 0;
    Clocks arriving, released;     // of this phase's arrivals; of all that is past
    std::vector<BulkCopy> copies;  // that will add their bytes here, not landed yet
    struct Lane {
        uint8_t warp, lane;
    };
    std::vector<Lane> deferred;  // that arrive once their cp.async have landed
};

// Bulk stores of one lane: as AsyncCopies.
struct BulkStores {
    std::vector<BulkCopy> open;
    std::vector<std::vector<BulkCopy>> sent;
};

struct WgmmaQueue;
struct Block;
struct Machine;

struct Warp {
    Machine* machine = nullptr;
    Block* block = nullptr;
    int index = 0;
    std::vector<Group> groups;
    std::vector<uint32_t> registers, poison;
    uint32_t* regs = nullptr;
    uint32_t live = 0;
    uint64_t spent = 0;  // instructions
    Clocks clock;
    Clock lanes_synced = 0;  // all lanes have seen each other's accesses up to here on its clock
    std::unique_ptr<std::array<std::array<Clock, 32>, 32>> pairs_synced;  // [lane][other]: more yet
    std::vector<uint8_t> local, local_poison;
    std::array<AsyncCopies, 32> copies;
    std::array<BulkStores, 32> stores;
    std::shared_ptr<WgmmaQueue> wgmma;  // made by the first wgmma
    const Instruction* current = nullptr;
    uint32_t current_mask = 0;

    [[noreturn]] void fault(const std::string& what, int lane = -1) const;
    Clock now() const { return clock.at[index]; }
    void tick() { ++clock.at[index]; }
    void sync_lanes(uint32_t mask);
    bool saw(int lane, int other, Clock then) const {
        return other == lane || then <= lanes_synced ||
               (pairs_synced && then <= (*pairs_synced)[lane][other]);
    }
};

// Who wrote a byte of shared memory last, and when, on that warp's clock.
struct Writer {
    Clock clock = 0;
    uint8_t warp = 0, lane = 0;
    uint16_t unused = 0;  // no padding: neighbours are compared as bytes
};

// Which lanes of a warp have read a byte since the last write, up to when on the warp's clock.
struct Reader {
    Clock clock = 0;
    uint32_t lanes = 0;
};

struct Barrier {
    uint32_t arrived = 0, expected = 0;
    Clocks clock;
    int reduction = 0;
};

struct Block {
    Machine* machine = nullptr;
    uint32_t id[3] = {};
    uint64_t linear = 0, spent = 0;
    std::vector<Warp> warps;
    std::vector<uint8_t> shared, poison;
    std::vector<Writer> writers;
    std::vector<Reader> readers;  // [warp][byte]
    Barrier barriers[16];
    std::map<uint32_t, Mbarrier> mbarriers;
    Clock copied = 0;                               // stamp of the newest bulk copy
    std::unordered_map<uint64_t, Clocks> released;  // by shared address of an atomic
    std::mt19937_64 random;

    Block(Machine&, uint64_t linear);
    uint32_t threads_live() const;
    bool turn();  // runs each warp for a while; false where all have ended
};

struct Machine {
    const Program* program = nullptr;
    std::vector<Buffer> buffers;
    std::vector<uint8_t> params;
    uint32_t grid[3] = {1, 1, 1}, threads[3] = {1, 1, 1};
    uint32_t shared_bytes = 0, dynamic_bytes = 0, resident = 1;
    uint64_t seed = 0, limit = 0;
    bool check_races = true, spread_poison = false;
    std::vector<int32_t> special;  // rows of the special registers in the order of ptx.SPECIAL
    Counters counters;
    size_t last_buffer = 0;
    // by global address: what the blocks that wrote there in order had seen
    std::unordered_map<uint64_t, Clocks> released;

    Buffer* find(uint64_t address) {
        if (last_buffer < buffers.size()) {
            Buffer& b = buffers[last_buffer];
            if (address - b.base < b.size) return &b;
        }
        for (size_t i = 0; i < buffers.size(); ++i)
            if (address - buffers[i].base < buffers[i].size) return last_buffer = i, &buffers[i];
        return nullptr;
    }
    void run();
};

// ---- registers
// -------------------------------------------------------------------------------------------------------------

template <class T>
using Storage = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

template <class T>
inline const Storage<T>* source(const Warp& w, const Operand& o) {
    const uint32_t* row = o.is_register() ? w.regs + int64_t{o.index} * 32
                                          : w.machine->program->constants.data() +
                                                int64_t{o.index} * 96 + (sizeof(T) == 8 ? 32 : 0);
    return reinterpret_cast<const Storage<T>*>(row);
}

inline uint32_t poisoned(const Warp& w, const Operand& o) {
    return o.is_register() ? w.poison[o.index] : 0;
}

template <class T>
inline T from_storage(Storage<T> s) {
    T out;
    std::memcpy(&out, &s, sizeof out);
    return out;
}

template <class T>
inline Storage<T> to_storage(T value) {
    Storage<T> s = 0;
    std::memcpy(&s, &value, sizeof value);
    return s;
}

// A lane of any register as 64 bits, zero-extended.
inline uint64_t lane_bits(const Warp& w, const Operand& o, int lane) {
    if (!o.is_register()) return source<uint64_t>(w, o)[lane];
    if (o.bits == 64) return source<uint64_t>(w, o)[lane];
    if (o.bits == 1) return w.regs[int64_t{o.index} * 32] >> lane & 1;
    uint32_t value = source<uint32_t>(w, o)[lane];
    return o.bits == 16 ? value & 0xffff : o.bits == 8 ? value & 0xff : value;
}

inline void set_lane(Warp& w, const Operand& o, int lane, uint64_t value, bool poison) {
    if (o.kind == kSink) return;
    uint32_t* row = w.regs + int64_t{o.index} * 32;
    if (o.bits == 64)
        reinterpret_cast<uint64_t*>(row)[lane] = value;
    else if (o.bits == 1)
        row[0] = (row[0] & ~(1u << lane)) | static_cast<uint32_t>(value & 1) << lane;
    else
        row[lane] = o.bits == 16 ? value & 0xffff : static_cast<uint32_t>(value);
    uint32_t& p = w.poison[o.index];
    p = (p & ~(1u << lane)) | (poison ? 1u << lane : 0);
}

inline void set_poison(Warp& w, const Operand& o, uint32_t mask, uint32_t poison) {
    uint32_t& p = w.poison[o.index];
    p = (p & ~mask) | (poison & mask);
}

template <class T>
inline void write(Warp& w, const Operand& o, const Storage<T>* values, uint32_t mask,
                  uint32_t poison) {
    if (o.kind == kSink) return;
    auto* row = reinterpret_cast<Storage<T>*>(w.regs + int64_t{o.index} * 32);
    if (mask == 0xffffffffu)
        std::memcpy(row, values, 32 * sizeof *row);
    else
        for (int l = 0; l < 32; ++l)
            if (mask >> l & 1) row[l] = values[l];
    set_poison(w, o, mask, poison);
}

inline uint32_t predicate(const Warp& w, const Operand& o) {
    uint32_t value =
        o.is_register() ? w.regs[int64_t{o.index} * 32] : (source<uint32_t>(w, o)[0] ? ~0u : 0u);
    return o.negated && o.is_register() ? ~value : value;
}

inline void set_predicate(Warp& w, const Operand& o, uint32_t value, uint32_t mask,
                          uint32_t poison) {
    if (o.kind == kSink) return;
    uint32_t& row = w.regs[int64_t{o.index} * 32];
    row = (row & ~mask) | (value & mask);
    set_poison(w, o, mask, poison);
}

inline uint64_t address(const Warp& w, const Operand& o, int lane) {
    uint64_t base = o.is_register() ? (o.bits == 64 ? source<uint64_t>(w, o)[lane]
                                                    : source<uint32_t>(w, o)[lane])
                                    : source<uint64_t>(w, o)[lane];
    return base + static_cast<uint64_t>(o.offset);
}

// ---- memory with its shadow
// -------------------------------------------------------------------------------------------------------------

std::string place(const Warp&, const Instruction&);
std::string hex(uint64_t);

// shared.cpp: records accesses for the race check; data and poison move separately.
void check_shared(Warp&, int lane, uint64_t at, uint64_t size, uint64_t align);
void shared_read(Warp&, int lane, uint32_t at, uint32_t size);
// value: what is written, where several threads may write the same bytes alike.
void shared_write(Warp&, int lane, uint32_t at, uint32_t size, const void* value = nullptr);
void shared_atomic(Warp&, int lane, uint32_t at, uint32_t size);
bool shared_poison(const Warp&, uint32_t at, uint32_t size);
// By the asynchronous proxy on a lane's behalf: a read, to come, of bytes that must hold a value,
// made visible by fence.proxy.async; a write that poisons them until it lands, with its stamp.
void check_async_read(Warp&, int lane, uint32_t at, uint32_t size);
void async_write(Warp&, int lane, uint32_t at, uint32_t size, Clock stamp);

// global.cpp
void check_aligned(Warp&, int lane, uint64_t at, uint64_t size);
uint8_t* global_at(Warp&, int lane, uint64_t at, uint64_t size, bool writing);
// As above, and records it for the race check. value: as shared_write. The read is poisoned where
// the buffer was passed as uninitialised and nobody has written.
uint8_t* global_write(Warp&, int lane, uint64_t at, uint64_t size, const void* value = nullptr);
const uint8_t* global_read(Warp&, int lane, uint64_t at, uint64_t size, uint64_t* poison = nullptr);
void count_global(Warp&, const uint64_t* at, uint32_t mask, uint32_t size, bool writing);
void count_row(Buffer&, uint64_t at, uint64_t size, bool writing);
void acquire(Warp&, uint64_t at);
void release(Warp&, uint64_t at);

// mbarrier.cpp: whether the phase has ended; bulk copies that it waits for land here and now.
bool phase_ended(Block&, uint32_t at, uint64_t phase);
Mbarrier& mbarrier_at(Warp&, int lane, uint64_t at);
std::string describe(const Mbarrier&);
void land_all(Warp&, int lane);      // async.cpp: the lane's cp.async
void land(Block&, const BulkCopy&);  // bulk.cpp: a load
void check_ended(Warp&);             // bulk.cpp, wgmma.cpp: nothing is left in flight at the end
bool wgmma_in_flight(const Warp&);
// All four warps of the warpgroup have committed so many groups.
bool warpgroup_committed(const Warp&, uint64_t groups);

}  // namespace emu
