// mma.sync and mma.sp: one warp multiplies A (16 x K) by B (K x 8) and adds C (16 x 8).
//
//   lane l, g = l / 4, t = l % 4; a register holds e = 32 / bits elements
//   A register r, element j:  row g + 8 (r & 1),  column t e + (r / 2) 4 e + j        (sparse:
//   stored columns) B register r, element j:  row t e + r 4 e + j, column g C, D register i (fp32,
//   s32): row g + 8 (i / 2), column 2 t + (i & 1); f16: register i holds row g + 8 i, columns 2t,
//   2t + 1 metadata, 16-bit elements, K = 32: selector F, lane 4 g + 2 F + (c / 4) names the kept
//   of groups c: row g in bits 0-15, row g + 8 in bits 16-31, four bits a group; K = 16: lane 4 g +
//   F, groups 0 to 3. Source: PTX ISA, "Matrix Fragments for mma.m16n8k16" and "Sparse matrix
//   storage".
//
// Products are summed in double and rounded once: the chip's own order is not specified.
#include <bit>

#include "machine.h"
#include "numbers.h"

namespace emu {
namespace {

enum Element : int32_t { kHalfE, kBfloatE, kTf32E, kS8, kU8, kE4m3E, kE5m2E, kElements };
constexpr int kElementBits[] = {16, 16, 32, 8, 8, 8, 8};

double decode(int type, uint32_t bits) {
    switch (type) {
        case kHalfE: {
            static const std::vector<double> table = [] {
                std::vector<double> t(65536);
                for (uint32_t i = 0; i < 65536; ++i) t[i] = Half::decode(i);
                return t;
            }();
            return table[bits & 0xffff];
        }
        case kBfloatE: return from_storage<float>(bits << 16);
        case kTf32E: return tf32_seen(bits);
        case kS8: return static_cast<int8_t>(bits);
        case kU8: return static_cast<uint8_t>(bits);
        case kE4m3E: return E4m3::decode(bits & 0xff);
        default: return E5m2::decode(bits & 0xff);
    }
}

// mode: A's type, B's type, stored K of A, sparse, accumulators (0 fp32, 1 f16, 2 s32), ordered
// metadata
Step mma(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    if (mask != ~0u) w.fault("mma needs all 32 lanes");
    int type_a = in.mode[0], type_b = in.mode[1], stored = in.mode[2], accumulate = in.mode[4];
    bool sparse = in.mode[3];
    int bits = kElementBits[type_a], e = 32 / bits, k = sparse ? 2 * stored : stored;
    int na = 16 * stored / 32 / e, nb = 8 * k / 32 / e, nc = accumulate == 1 ? 2 : 4;
    const Operand *d = in.ops, *a = d + nc, *b = a + na, *c = b + nb, *meta = c + nc;
    // What is uninitialised spreads along its row of A or column of B; unless told to spread, it is
    // a fault here.
    uint32_t bad_rows = 0, bad_columns = 0, bad_c[4] = {}, bad = 0;
    for (int r = 0; r < na; ++r) {
        uint32_t lanes = poisoned(w, a[r]);
        bad |= lanes;
        for (int l = 0; lanes >> l && l < 32; ++l)
            if (lanes >> l & 1) bad_rows |= 1u << (l / 4 + 8 * (r & 1));
    }
    for (int r = 0; r < nb; ++r) {
        uint32_t lanes = poisoned(w, b[r]);
        bad |= lanes;
        for (int l = 0; lanes >> l && l < 32; ++l)
            if (lanes >> l & 1) bad_columns |= 1u << (l / 4);
    }
    for (int r = 0; r < nc; ++r) bad |= bad_c[r] = poisoned(w, c[r]);
    if (bad && !w.machine->spread_poison)
        w.fault("an uninitialised value reaches the tensor core", std::countr_zero(bad));

    alignas(64) double A[16][64], B[64][8], C[16][8];
    uint32_t field = bits == 32 ? ~0u : (1u << bits) - 1;
    for (int r = 0; r < na; ++r) {
        auto* lanes = source<uint32_t>(w, a[r]);
        for (int l = 0; l < 32; ++l)
            for (int j = 0; j < e; ++j)
                A[l / 4 + 8 * (r & 1)][l % 4 * e + (r >> 1) * 4 * e + j] =
                    decode(type_a, lanes[l] >> (bits * j) & field);
    }
    for (int r = 0; r < nb; ++r) {
        auto* lanes = source<uint32_t>(w, b[r]);
        for (int l = 0; l < 32; ++l)
            for (int j = 0; j < e; ++j)
                B[l % 4 * e + r * 4 * e + j][l / 4] =
                    decode(type_b, lanes[l] >> (bits * j) & field);
    }
    for (int r = 0; r < nc; ++r) {
        auto* lanes = source<uint32_t>(w, c[r]);
        for (int l = 0; l < 32; ++l) {
            if (accumulate == 1) {
                C[l / 4 + 8 * r][2 * (l % 4)] = Half::decode(lanes[l] & 0xffff);
                C[l / 4 + 8 * r][2 * (l % 4) + 1] = Half::decode(lanes[l] >> 16);
            } else {
                C[l / 4 + 8 * (r >> 1)][2 * (l % 4) + (r & 1)] =
                    accumulate == 2 ? static_cast<int32_t>(lanes[l])
                                    : from_storage<float>(lanes[l]);
            }
        }
    }
    auto fma_row = [&](int row, int column, double value) {
        for (int n = 0; n < 8; ++n) C[row][n] += value * B[column][n];
    };
    if (!sparse) {
        for (int row = 0; row < 16; ++row)
            for (int i = 0; i < k; ++i) fma_row(row, i, A[row][i]);
        w.machine->counters.macs += 16 * 8 * k;
    } else {
        auto* words = source<uint32_t>(w, meta[0]);
        auto selector = static_cast<int>(lane_bits(w, meta[1], 0));
        int supply = k == 32 ? 2 : 1;  // lanes of each quad that give metadata
        if (selector < 0 || selector >= 4 / supply)
            w.fault("sparsity selector " + std::to_string(selector) + " is out of range");
        for (int row = 0; row < 16; ++row)
            for (int group = 0; group < k / 4; ++group) {
                int lane = 4 * (row % 8) + supply * selector + group / 4;
                if (poisoned(w, meta[0]) >> lane & 1) {
                    if (!w.machine->spread_poison)
                        w.fault("uninitialised metadata reaches the tensor core", lane);
                    bad_rows |= 1u << row;
                    continue;
                }
                uint32_t four = words[lane] >> (row >= 8 ? 16 : 0) >> (4 * (group % 4)) & 15;
                int first = four & 3, second = four >> 2;
                if (first == second || (in.mode[5] && first > second)) {
                    if (!w.machine->spread_poison)
                        w.fault("invalid 2:4 metadata: positions " + std::to_string(first) +
                                    " and " + std::to_string(second) + " of row " +
                                    std::to_string(row) + ", group " + std::to_string(group) +
                                    (first == second ? " are equal" : " do not rise"),
                                lane);
                    bad_rows |= 1u << row;
                    continue;
                }
                fma_row(row, 4 * group + first, A[row][2 * group]);
                fma_row(row, 4 * group + second, A[row][2 * group + 1]);
            }
        w.machine->counters.sparse_macs += 16 * 8 * stored;
    }
    for (int r = 0; r < nc; ++r) {
        uint32_t out[32];
        for (int l = 0; l < 32; ++l) {
            if (accumulate == 1) {
                out[l] = Half::encode(C[l / 4 + 8 * r][2 * (l % 4)]) |
                         static_cast<uint32_t>(Half::encode(C[l / 4 + 8 * r][2 * (l % 4) + 1]))
                             << 16;
            } else {
                double value = C[l / 4 + 8 * (r >> 1)][2 * (l % 4) + (r & 1)];
                out[l] = accumulate == 2 ? static_cast<uint32_t>(static_cast<int64_t>(value))
                                         : to_storage(canonical(static_cast<float>(value)));
            }
        }
        uint32_t poison = bad_c[r];
        for (int l = 0; (bad_rows | bad_columns) && l < 32; ++l) {
            int row = l / 4 + 8 * (accumulate == 1 ? r : r >> 1), column = 2 * (l % 4);
            uint32_t columns = accumulate == 1 ? 3u << column : 1u << (column + (r & 1));
            if ((bad_rows >> row & 1) || (bad_columns & columns)) poison |= 1u << l;
        }
        write<uint32_t>(w, d[r], out, ~0u, poison);
    }
    return Step::kNext;
}

int element(std::string_view t) {
    static const std::string_view names[] = {"f16", "bf16", "tf32", "s8", "u8", "e4m3", "e5m2"};
    for (int i = 0; i < kElements; ++i)
        if (t == names[i]) return i;
    return -1;
}

}  // namespace

bool bind_mma(const Opcode& op, Instruction& in) {
    if (op.base != "mma") return false;
    bool ordered = op.has("sp::ordered_metadata"), sparse = ordered || op.has("sp");
    if (!op.has("row") || !op.has("col") || !op.has("sync") || op.modifiers.size() < 7 ||
        op.has("satfinite"))
        return false;
    in.kind = sparse ? Class::kMmaSparse : Class::kMma;
    in.aligned = true;
    int k = 0;
    for (auto [name, value] : {std::pair<std::string_view, int>{"m16n8k4", 4},
                               {"m16n8k8", 8},
                               {"m16n8k16", 16},
                               {"m16n8k32", 32},
                               {"m16n8k64", 64}})
        if (op.has(name)) k = value;
    auto accumulator = op.last(), d = op.last(3);
    in.mode[0] = element(op.last(2)), in.mode[1] = element(op.last(1));
    if (!k || in.mode[0] < 0 || in.mode[1] < 0 || accumulator != d) return false;
    int bits = kElementBits[in.mode[0]];
    if (bits != kElementBits[in.mode[1]]) return false;
    in.mode[4] = d == "f32" ? 0 : d == "f16" ? 1 : d == "s32" ? 2 : -1;
    in.mode[3] = sparse;
    in.mode[5] = ordered;
    in.mode[2] = sparse ? k / 2 : k;
    bool integer = in.mode[0] == kS8 || in.mode[0] == kU8;
    if (in.mode[4] < 0 || integer != (in.mode[4] == 2)) return false;
    // The layouts above hold for K of 128 or 256 bits a row; sparse only for 16-bit elements: the
    // 8-bit form's metadata is not anchored by any kernel that others wrote.
    int row_bits = in.mode[2] * bits;
    if (row_bits != 128 && row_bits != 256) return false;
    if (sparse && bits != 16) return false;
    in.handler = mma;
    int e = 32 / bits, nc = in.mode[4] == 1 ? 2 : 4;
    return in.count == 2 * nc + 16 * in.mode[2] / 32 / e + 8 * k / 32 / e + (sparse ? 2 : 0);
}

}  // namespace emu
