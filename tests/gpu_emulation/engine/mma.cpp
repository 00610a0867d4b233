// mma.sync and mma.sp: one warp multiplies A (16 x K) by B (K x 8) and adds C (16 x 8).
//
//   lane l, g = l / 4, t = l % 4; a register holds e = 32 / bits elements
//   A register r, element j:  row g + 8 (r & 1), column t e + (r / 2) 4 e + j   (sparse: stored)
//   B register r, element j:  row t e + r 4 e + j, column g
//   C, D register i, fp32 and s32: row g + 8 (i / 2), column 2 t + (i & 1)
//                    f16: row g + 8 i, columns 2 t and 2 t + 1
//
// So the 32 lanes of one register, read in order, are an 8 x 4e block by rows (A) or by columns
// (B).
//
//   metadata, four bits for the group c of four columns: its kept positions, the first one low
//   16-bit elements, K = 16: selector F, lane 4 g + F,             bit 4 c, row g + 8: 16 above
//                    K = 32: selector F, lane 4 g + 2 F + c / 4,   bit 4 (c % 4), row g + 8: alike
//    8-bit elements, K = 64: selector 0, lane 4 g + 2 (c / 8),     bit 4 (c % 8), row g + 8: the
//                            lane above
//
// Source: PTX ISA, "Matrix Fragments for mma.m16n8k16" and its siblings, "Sparse matrix storage".
// Products are exact in double, are summed there and rounded once: the chip's own order is not
// specified.
#include <bit>

#include "machine.h"
#include "modifiers.h"
#include "tiles.h"

namespace emu {
namespace {

// mode: A's and B's element, K, sparse, accumulators, ordered metadata
template <int kPerWord>
Step mma(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    if (mask != ~0u) w.fault("mma needs all 32 lanes");
    const Element &type_a = kElements[in.mode[0]], &type_b = kElements[in.mode[1]];
    auto sum = static_cast<Sum>(in.mode[4]);
    bool sparse = in.mode[3];
    int k = in.mode[2], stored = sparse ? k / 2 : k;
    int na = stored / 2 / kPerWord, nb = k / 4 / kPerWord, nc = registers_of(sum);
    const Operand *d = in.ops, *a = d + nc, *b = a + na, *c = b + nb, *meta = c + nc;

    Tiles tiles;
    Poison poison;
    uint32_t bad = 0;
    for (int r = 0; r < na; ++r) {
        bad |= poisoned(w, a[r]);
        poison.rows |= quads(poisoned(w, a[r])) << (8 * (r & 1));
        load_a<kPerWord>(tiles, type_a, source<uint32_t>(w, a[r]), r);
    }
    for (int r = 0; r < nb; ++r) {
        bad |= poisoned(w, b[r]);
        poison.columns |= quads(poisoned(w, b[r]));
        load_b<kPerWord>(tiles, type_b, source<uint32_t>(w, b[r]), r);
    }
    for (int r = 0; r < nc; ++r) bad |= poison.accumulators[r] = poisoned(w, c[r]);
    if (bad && !w.machine->spread_poison)
        w.fault("an uninitialised value reaches the tensor core", std::countr_zero(bad));
    load_c(tiles, w, sum, c);
    if (sparse) {
        auto selector = static_cast<int>(lane_bits(w, meta[1], 0));
        Metadata metadata{source<uint32_t>(w, meta[0]),
                          poisoned(w, meta[0]),
                          type_a.bits,
                          k,
                          selector,
                          in.mode[5] != 0};
        multiply_sparse(w, tiles, metadata, poison);
        w.machine->counters.sparse_macs += kRows * kColumns * stored;
    } else {
        multiply(tiles, k);
        w.machine->counters.macs += kRows * kColumns * k;
    }
    for (int r = 0; r < nc; ++r) {
        uint32_t out[kLanes];
        encode_register(tiles, sum, r, out);
        write<uint32_t>(w, d[r], out, ~0u, poison.of_register(sum, r));
    }
    return Step::kNext;
}

}  // namespace

bool bind_mma(const Opcode& op, Instruction& in) {
    if (op.base != "mma") return false;
    Modifiers left(op);
    bool ordered = left.take("sp::ordered_metadata"), sparse = ordered || left.take("sp");
    bool saturate = left.take("satfinite");
    bool row_by_column = op.text.find(".row.col.") != op.text.npos;
    if (!left.take("sync") || !left.take("aligned") || !row_by_column) return false;
    left.take("row"), left.take("col");
    int shape = left.take_one_of({"m16n8k4", "m16n8k8", "m16n8k16", "m16n8k32", "m16n8k64"});
    auto c = left.take_last(), b = left.take_last(), a = left.take_last(), d = left.take_last();
    int type_a = element(a), type_b = element(b);
    if (shape < 0 || type_a < 0 || type_b < 0 || c != d || !left.none_left()) return false;
    const Element& type = kElements[type_a];
    if (type.family != kElements[type_b].family) return false;
    int sum = accumulators(d, type.family, saturate);
    if (sum < 0) return false;

    int k = 4 << shape, stored = sparse ? k / 2 : k;
    if (stored * type.bits != 128 && stored * type.bits != 256) return false;
    // Other metadata layouts than these are anchored by no kernel that others wrote.
    bool anchored = type.bits == 16 || (type.family == Family::kInteger && k == 64);
    if (sparse && !anchored) return false;

    in.kind = sparse ? Class::kMmaSparse : Class::kMma;
    in.aligned = true;
    int32_t modes[] = {type_a, type_b, k, sparse, sum, ordered};
    std::copy(std::begin(modes), std::end(modes), in.mode);
    in.handler = type.bits == 8 ? mma<4> : type.bits == 16 ? mma<2> : mma<1>;
    int words = (kRows * stored + kColumns * k) * type.bits / 32 / kLanes;
    return in.count == 2 * registers_of(static_cast<Sum>(sum)) + words + (sparse ? 2 : 0);
}

}  // namespace emu
