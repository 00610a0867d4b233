// wgmma.mma_async: each of the four warps of a warpgroup multiplies its 16 rows of A by all of B.
//
//   warp w of the four: rows 16 w.. of the 64; D register 4 j + i is register i of mma's 16 x 8
//   tile j A from registers: mma's fragment. A and B from shared memory by a descriptor (64 bits):
//     0-13 address / 16   16-29 leading offset / 16   32-45 stride offset / 16
//     49-51 base offset (0)   62-63 swizzle: 0 none, 1 128, 2 64, 3 32 bytes (P bytes; none: 16)
//   K-major, 16-byte piece c of row m:     P (m % 8) + stride (m / 8) + 16 c
//     pieces beyond P bytes go on at the leading offset: + leading (c / (P / 16))
//   MN-major, row k of 8-element piece j:  16 (j % (P / 16)) + leading (j / (P / 16))
//                                          + P (k % 8) + stride (k / 8)
//     without a swizzle leading and stride change places
//   the address so found is swizzled by its own bits (tensor_map.h)
//
// Nothing happens at issue but checks. The tiles are read and multiplied, for all four warps, when
// wait_group lets the group go in the first of them: as late as is legal. (One warp's wait tells
// that the warpgroup's operation is done.) A warp's accumulators are poison until its own wait.
// Sources: PTX ISA, "Asynchronous warpgroup level matrix instructions"; the layouts as CUTLASS
// draws them in cute/atom/mma_traits_sm90_gmma.hpp.
#include <cstdio>
#include <deque>
#include <utility>

#include "machine.h"
#include "modifiers.h"
#include "tensor_map.h"
#include "tiles.h"

namespace emu {

struct Wgmma {
    const Instruction* from;
    uint64_t a, b;                                     // descriptors
    std::array<std::array<uint32_t, 32>, 4> fragment;  // of A, if from registers
    std::array<uint32_t, 32> metadata;
    int selector;
    bool accumulate;
};

struct WgmmaQueue {
    struct Committed {
        std::vector<Wgmma> operations;
        bool done = false;
        int reader = 0;   // the warp whose wait had it done, and when: its reads come before
        Clock stamp = 0;  // what follows this warp's own wait
    };
    struct Accumulator {
        int pending;      // operations in flight that add to it
        uint32_t poison;  // what it will be once they are done
    };
    std::vector<Wgmma> open;
    std::deque<Committed> sent;  // the groups from number `retired` to `committed`
    uint64_t retired = 0, committed = 0;
    std::map<int32_t, Accumulator> flying;             // by row of the register file
    std::map<int32_t, std::array<uint32_t, 32>> last;  // what the latest wait left there
    bool fenced = false;
};

bool wgmma_in_flight(const Warp& w) { return w.wgmma && !w.wgmma->flying.empty(); }

bool warpgroup_committed(const Warp& w, uint64_t groups) {
    for (int i = w.index & ~3; i <= (w.index | 3); ++i) {
        const auto& queue = w.block->warps[i].wgmma;
        if (!queue || queue->committed < groups) return false;
    }
    return true;
}

namespace {

// What opcode and operands say. in.mode: A's and B's element, accumulators, N, K, sparse
struct Form {
    const Element &type_a, &type_b;
    Sum sum;
    int n, k, stored, per_tile;
    bool sparse, a_in_registers, a_transposed = false, b_transposed = false;
    int sign = 1;
    const Operand *d, *a, *b, *metadata, *accumulate;

    Form(const Warp& w, const Instruction& in)
        : type_a(kElements[in.mode[0]]), type_b(kElements[in.mode[1]]),
          sum(static_cast<Sum>(in.mode[2])), n(in.mode[3]), k(in.mode[4]),
          stored(in.mode[5] ? k / 2 : k), per_tile(registers_of(sum)), sparse(in.mode[5]),
          d(in.ops), a(d + n / 8 * per_tile) {
        a_in_registers = a[1].group == a[0].group;
        b = a + (a_in_registers ? 4 : 1);
        metadata = b + 1;
        accumulate = metadata + (sparse ? 2 : 0);
        auto number = [&](const Operand* o) { return static_cast<int>(lane_bits(w, *o, 0)); };
        if (type_a.family == Family::kInteger) return;
        sign = number(accumulate + 1) * number(accumulate + 2);
        if (type_a.bits != 16) return;
        const Operand* transposed = accumulate + 3;
        if (!a_in_registers) a_transposed = number(transposed++);
        b_transposed = number(transposed);
    }
    int accumulators() const { return n / 8 * per_tile; }
    int pieces(bool of_a) const { return (of_a ? stored : k) * type_a.bits / 128; }
};

// Where a tile lies in shared memory, told by its descriptor.
struct Tile {
    uint64_t descriptor;
    bool transposed;

    int swizzle() const {  // as tensor maps count: 0 none, 1 32, 2 64, 3 128 bytes
        constexpr int modes[] = {0, 3, 2, 1};
        return modes[descriptor >> 62];
    }
    // Address of the 16 bytes: K-major, row and piece along K; MN-major, row along K and piece.
    uint32_t address(uint32_t row, uint32_t piece) const {
        uint32_t start = (descriptor & 0x3fff) * 16, leading = (descriptor >> 16 & 0x3fff) * 16,
                 stride = (descriptor >> 32 & 0x3fff) * 16, bytes = 16u << swizzle();
        if (transposed && bytes == 16) std::swap(leading, stride);
        uint32_t atom = bytes / 16, at = start + bytes * (row % 8) + stride * (row / 8) +
                                         16 * (piece % atom) + leading * (piece / atom);
        return swizzled(at, swizzle());
    }
    // Rows 8 g.. of the 16 bytes of K at piece c, as 32 words: call(address, row) for its eight.
    template <class F>
    void core_matrix(uint32_t g, uint32_t c, F call) const {
        for (uint32_t i = 0; i < 8; ++i)
            call(transposed ? address(8 * c + i, g) : address(8 * g + i, c), i);
    }
    void load(Warp& reader, uint32_t g, uint32_t c, uint32_t* words) const {
        uint16_t halves[8][8];
        core_matrix(g, c, [&](uint32_t at, uint32_t i) {
            if (shared_poison(reader, at, 16))
                reader.fault(
                    "shared bytes at " + hex(at) +
                    " were given to others before the wgmma that reads them was waited for");
            shared_read(reader, 0, at, 16);
            std::memcpy(halves[i], reader.block->shared.data() + at, 16);
        });
        if (transposed)
            for (int i = 0; i < 8; ++i)
                for (int j = 0; j < i; ++j) std::swap(halves[i][j], halves[j][i]);
        std::memcpy(words, halves, sizeof halves);
    }
    void check(Warp& w, uint32_t g, uint32_t c) const {
        core_matrix(g, c, [&](uint32_t at, uint32_t) {
            check_shared(w, 0, at, 16, 16);
            check_async_read(w, 0, at, 16);
        });
    }
};

WgmmaQueue& queue_of(Warp& w) {
    if (!w.wgmma) w.wgmma = std::make_shared<WgmmaQueue>();
    return *w.wgmma;
}

// Groups of eight rows of A that are this warp's.
uint32_t first_group(const Warp& w) { return 2 * (w.index % 4); }

void check_tiles(Warp& w, const Form& form, uint64_t a, uint64_t b) {
    for (uint64_t descriptor : {form.a_in_registers ? 0 : a, b})
        if (descriptor >> 49 & 7) w.fault("a base offset other than 0 is not emulated");
    Tile tile_a{a, form.a_transposed}, tile_b{b, form.b_transposed};
    for (int c = 0; !form.a_in_registers && c < form.pieces(true); ++c)
        for (uint32_t g = 0; g < 2; ++g) tile_a.check(w, first_group(w) + g, c);
    for (int c = 0; c < form.pieces(false); ++c)
        for (int g = 0; g < form.n / 8; ++g) tile_b.check(w, g, c);
}

// Accumulators that nothing in flight adds to yet: they must hold a value if it counts, ordered
// before this by wgmma.fence unless the last wait left them as they are.
void claim_accumulators(Warp& w, WgmmaQueue& queue, const Form& form, bool accumulate) {
    for (int i = 0; i < form.accumulators(); ++i) {
        int32_t row = form.d[i].index;
        auto [found, fresh] = queue.flying.try_emplace(row, WgmmaQueue::Accumulator{});
        ++found->second.pending;
        if (!fresh) continue;
        uint32_t poison = poisoned(w, form.d[i]);
        if (accumulate && poison && !w.machine->spread_poison)
            w.fault("an uninitialised accumulator reaches the tensor core",
                    std::countr_zero(poison));
        auto last = queue.last.find(row);
        bool untouched = last != queue.last.end() &&
                         (!accumulate || !std::memcmp(last->second.data(), w.regs + row * 32, 128));
        if (!queue.fenced && !untouched)
            w.fault("accumulators were written and no wgmma.fence orders that before this");
        found->second.poison = accumulate ? poison : 0;
        w.poison[row] = ~0u;
    }
}

Step issue(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    if (mask != ~0u) w.fault("wgmma needs all 32 lanes");
    if (static_cast<size_t>(w.index | 3) >= w.block->warps.size())
        w.fault("wgmma needs a warpgroup: four warps from a multiple of four on");
    WgmmaQueue& queue = queue_of(w);
    Form form(w, in);
    for (const Operand* o = form.a; o < in.ops + in.count; ++o)
        if (uint32_t bad = poisoned(w, *o))
            w.fault("an uninitialised value reaches the tensor core", std::countr_zero(bad));
    Wgmma op{.from = &in};
    op.a = lane_bits(w, *form.a, 0), op.b = lane_bits(w, *form.b, 0);
    op.accumulate = predicate(w, *form.accumulate) & 1;
    for (int r = 0; form.a_in_registers && r < 4; ++r)
        std::memcpy(op.fragment[r].data(), source<uint32_t>(w, form.a[r]), 128);
    if (form.sparse) {
        std::memcpy(op.metadata.data(), source<uint32_t>(w, form.metadata[0]), 128);
        op.selector = static_cast<int>(lane_bits(w, form.metadata[1], 0));
    }
    check_tiles(w, form, op.a, op.b);
    claim_accumulators(w, queue, form, op.accumulate);
    queue.open.push_back(op);
    uint64_t macs = uint64_t{kRows} * form.n * form.stored;
    (form.sparse ? w.machine->counters.sparse_macs : w.machine->counters.macs) += macs;
    return Step::kNext;
}

template <int kPerWord>
void load_factor_a(Warp& w, Warp& reader, const Form& form, const Wgmma& op, Tiles& tiles) {
    Tile tile{op.a, form.a_transposed};
    for (int r = 0; r < 2 * form.pieces(true); ++r) {
        uint32_t words[32];
        if (form.a_in_registers) {
            if (std::memcmp(op.fragment[r].data(), source<uint32_t>(w, form.a[r]), 128))
                w.fault("a register of A was written before the wgmma's wait");
            std::memcpy(words, op.fragment[r].data(), 128);
        } else {
            tile.load(reader, first_group(w) + (r & 1), r >> 1, words);
        }
        load_a<kPerWord>(tiles, form.type_a, words, r);
    }
    if (form.sign < 0)
        for (auto& row : tiles.a)
            for (double& x : row) x = -x;
}

template <int kPerWord>
void multiply_tiles(Warp& w, Warp& reader, const Form& form, const Wgmma& op) {
    Tiles tiles{};
    load_factor_a<kPerWord>(w, reader, form, op, tiles);
    Tile tile_b{op.b, form.b_transposed};
    for (int j = 0; j < form.n / 8; ++j) {
        for (int c = 0; c < form.pieces(false); ++c) {
            uint32_t words[32];
            tile_b.load(reader, j, c, words);
            load_b<kPerWord>(tiles, form.type_b, words, c);
        }
        const Operand* d = form.d + j * form.per_tile;
        Poison poison;
        for (int r = 0; r < form.per_tile; ++r) {
            if (w.poison[d[r].index] != ~0u)
                w.fault("an accumulator was written while its wgmma was in flight");
            poison.accumulators[r] = w.wgmma->flying[d[r].index].poison;
        }
        if (op.accumulate)
            load_c(tiles, w, form.sum, d);
        else
            std::memset(tiles.c, 0, sizeof tiles.c);
        if (form.sparse)
            multiply_sparse(w, tiles,
                            {op.metadata.data(), 0, form.type_a.bits, form.k, op.selector, true},
                            poison);
        else
            multiply(tiles, form.k);
        for (int r = 0; r < form.per_tile; ++r) {
            encode_register(tiles, form.sum, r, w.regs + int64_t{d[r].index} * 32);
            w.wgmma->flying[d[r].index].poison = poison.of_register(form.sum, r);
        }
    }
}

void compute(Warp& w, Warp& reader, const Wgmma& op) {
    w.current = reader.current = op.from, w.current_mask = ~0u;
    Form form(w, *op.from);
    if (form.type_a.bits == 16)
        multiply_tiles<2>(w, reader, form, op);
    else if (form.type_a.bits == 8)
        multiply_tiles<4>(w, reader, form, op);
    else
        multiply_tiles<1>(w, reader, form, op);
}

// Gives back the accumulators that nothing else in flight adds to.
void give_back(Warp& w, const Wgmma& op) {
    WgmmaQueue& queue = *w.wgmma;
    Form form(w, *op.from);
    for (int i = 0; i < form.accumulators(); ++i) {
        int32_t row = form.d[i].index;
        auto flying = queue.flying.find(row);
        if (--flying->second.pending) continue;
        w.poison[row] = flying->second.poison;
        queue.flying.erase(flying);
        std::memcpy(queue.last[row].data(), w.regs + int64_t{row} * 32, 128);
    }
}

Step fence(Warp& w, Group&, const Instruction&, uint32_t) {
    queue_of(w).fenced = true;
    return Step::kNext;
}

Step commit(Warp& w, Group&, const Instruction&, uint32_t) {
    WgmmaQueue& queue = queue_of(w);
    queue.sent.push_back({std::exchange(queue.open, {})});
    ++queue.committed;
    return Step::kNext;
}

Step wait(Warp& w, Group& g, const Instruction& in, uint32_t) {
    WgmmaQueue& queue = queue_of(w);
    uint64_t keep = lane_bits(w, in.ops[0], 0),
             target = queue.committed > keep ? queue.committed - keep : 0;
    if (target > queue.retired && !warpgroup_committed(w, target)) {
        g.wait = Wait::kWarpgroup, g.phase = target;
        return Step::kRetry;
    }
    for (int i = w.index & ~3; target > queue.retired && i <= (w.index | 3); ++i) {
        Warp& other = w.block->warps[i];
        for (uint64_t n = other.wgmma->retired; n < target; ++n) {
            auto& group = other.wgmma->sent[n - other.wgmma->retired];
            if (std::exchange(group.done, true)) continue;
            for (const Wgmma& op : group.operations) compute(other, w, op);
            group.reader = w.index, group.stamp = w.now();
        }
    }
    w.current = &in;
    for (; queue.retired < target; ++queue.retired) {
        auto& group = queue.sent.front();
        for (const Wgmma& op : group.operations) give_back(w, op);
        w.clock.at[group.reader] = std::max(w.clock.at[group.reader], group.stamp);
        queue.sent.pop_front();
    }
    queue.fenced = false;
    w.sync_lanes(~0u);
    return Step::kNext;
}

// "m64n128k16" -> {128, 16}; {0, 0} where it is none.
std::pair<int, int> shape_of(std::string_view text) {
    int n = 0, k = 0;
    if (std::sscanf(std::string(text).c_str(), "m64n%dk%d", &n, &k) != 2) return {};
    return n % 8 || n < 8 || n > 256 ? std::pair{0, 0} : std::pair{n, k};
}

}  // namespace

bool bind_wgmma(const Opcode& op, Instruction& in) {
    if (op.base != "wgmma") return false;
    Modifiers left(op);
    if (!left.take("sync") || !left.take("aligned")) return false;
    in.aligned = true;
    in.kind = Class::kAsync;
    if (left.take("fence")) return in.handler = fence, left.none_left();
    if (left.take("commit_group")) return in.handler = commit, left.none_left();
    if (left.take("wait_group")) return in.handler = wait, left.none_left();
    if (!left.take("mma_async")) return false;
    bool sparse = left.take("sp"), saturate = left.take("satfinite");
    auto b = left.take_last(), a = left.take_last(), d = left.take_last();
    auto [n, k] = shape_of(left.take_first());
    int type_a = element(a), type_b = element(b);
    if (!n || type_a < 0 || type_b < 0 || !left.none_left()) return false;
    const Element& type = kElements[type_a];
    int sum = accumulators(d, type.family, saturate);
    if (type.family != kElements[type_b].family || sum < 0) return false;
    if (k * type.bits != (sparse ? 512 : 256)) return false;
    if (sparse && type.bits != 16) return false;  // metadata anchored by no kernel of others
    in.kind = sparse ? Class::kMmaSparse : Class::kMma;
    in.handler = issue;
    int32_t modes[] = {type_a, type_b, sum, n, k, sparse};
    std::copy(std::begin(modes), std::end(modes), in.mode);
    int first = n / 8 * registers_of(static_cast<Sum>(sum));
    if (in.count < first + 2) return false;
    bool registers = in.ops[first].group == in.ops[first + 1].group;
    int signs = type.family == Family::kInteger ? 0 : 2,
        transposes = type.bits == 16 ? 2 - registers : 0;
    return in.count == first + (registers ? 4 : 1) + 1 + 2 * sparse + 1 + signs + transposes;
}

}  // namespace emu
