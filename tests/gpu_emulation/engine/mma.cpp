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
#include <algorithm>
#include <array>
#include <bit>
#ifdef __F16C__
#include <immintrin.h>
#endif

#include "machine.h"
#include "modifiers.h"
#include "numbers.h"

namespace emu {
namespace {

constexpr int kRows = 16, kColumns = 8, kLanes = 32, kMostStored = 32, kMostK = 64;

// ---- elements: all lanes of a register to floats, which hold each of these types exactly

using Words = const uint32_t*;

template <class Stored>
std::array<Stored, kLanes * 4 / sizeof(Stored)> elements(Words words) {
    std::array<Stored, kLanes * 4 / sizeof(Stored)> out;
    std::memcpy(out.data(), words, sizeof out);
    return out;
}

void decode_half(Words words, float* out) {
    auto halves = elements<uint16_t>(words);
#ifdef __F16C__
    for (size_t i = 0; i < halves.size(); i += 8) {
        auto eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(halves.data() + i));
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(eight));
    }
#else
    for (size_t i = 0; i < halves.size(); ++i) out[i] = static_cast<float>(Half::decode(halves[i]));
#endif
}
void decode_bfloat(Words words, float* out) {
    auto halves = elements<uint16_t>(words);
    for (size_t i = 0; i < halves.size(); ++i)
        out[i] = std::bit_cast<float>(uint32_t{halves[i]} << 16);
}
void decode_tf32(Words words, float* out) {
    for (int l = 0; l < kLanes; ++l) out[l] = tf32_seen(words[l]);
}
template <class Integer>
void decode_integer(Words words, float* out) {
    auto bytes = elements<Integer>(words);
    for (size_t i = 0; i < bytes.size(); ++i) out[i] = bytes[i];
}
template <class Format>
void decode_fp8(Words words, float* out) {
    static const auto table = [] {
        std::array<float, 256> t;
        for (uint32_t i = 0; i < 256; ++i) t[i] = static_cast<float>(Format::decode(i));
        return t;
    }();
    auto bytes = elements<uint8_t>(words);
    for (size_t i = 0; i < bytes.size(); ++i) out[i] = table[bytes[i]];
}

// Both factors of a product are of one family.
enum class Family : uint8_t { kHalf, kBfloat, kTf32, kInteger, kFp8 };
struct Element {
    std::string_view name;
    Family family;
    int bits;
    void (*decode)(Words, float*);
};
constexpr Element kElements[] = {{"f16", Family::kHalf, 16, decode_half},
                                 {"bf16", Family::kBfloat, 16, decode_bfloat},
                                 {"tf32", Family::kTf32, 32, decode_tf32},
                                 {"s8", Family::kInteger, 8, decode_integer<int8_t>},
                                 {"u8", Family::kInteger, 8, decode_integer<uint8_t>},
                                 {"e4m3", Family::kFp8, 8, decode_fp8<E4m3>},
                                 {"e5m2", Family::kFp8, 8, decode_fp8<E5m2>}};

// ---- fragments and tiles

// Eight columns at once, in whatever registers this CPU has.
using Row = double __attribute__((vector_size(64), may_alias));

struct Tiles {
    alignas(64) double a[kRows][kMostStored], b[kMostK][kColumns], c[kRows][kColumns];
    const Row* row_of_b(int k) const { return reinterpret_cast<const Row*>(b[k]); }
    Row* row_of_c(int row) { return reinterpret_cast<Row*>(c[row]); }
};

template <int kPerWord>
void load_a(Tiles& tiles, const Element& type, Words words, int r) {
    constexpr int kWidth = 4 * kPerWord;
    float block[8][kWidth];
    type.decode(words, block[0]);
    for (int row = 0; row < 8; ++row)
        std::copy_n(block[row], kWidth, tiles.a[row + 8 * (r & 1)] + (r >> 1) * kWidth);
}

template <int kPerWord>
void load_b(Tiles& tiles, const Element& type, Words words, int r) {
    constexpr int kWidth = 4 * kPerWord;
    float block[kColumns][kWidth];
    type.decode(words, block[0]);
    for (int k = 0; k < kWidth; ++k)
        for (int n = 0; n < kColumns; ++n) tiles.b[r * kWidth + k][n] = block[n][k];
}

// Accumulators: how many registers, and how the 8 x 8 half of the tile moves to and from them.
enum class Sum : int32_t { kFloat, kHalf, kInteger, kSaturated };
int registers_of(Sum sum) { return sum == Sum::kHalf ? 2 : 4; }

template <class T>
void load_pairs(double* half_tile, Words even, Words odd) {
    for (int l = 0; l < kLanes; ++l) {
        half_tile[2 * l] = std::bit_cast<T>(even[l]);
        half_tile[2 * l + 1] = std::bit_cast<T>(odd[l]);
    }
}

void load_c(Tiles& tiles, const Warp& w, Sum sum, const Operand* c) {
    for (int half = 0; half < 2; ++half) {
        double* to = tiles.c[8 * half];
        auto word = [&](int r) { return source<uint32_t>(w, c[r]); };
        if (sum == Sum::kHalf) {
            float block[2 * kLanes];
            decode_half(word(half), block);
            std::copy_n(block, 2 * kLanes, to);
        } else if (sum == Sum::kFloat) {
            load_pairs<float>(to, word(2 * half), word(2 * half + 1));
        } else {
            load_pairs<int32_t>(to, word(2 * half), word(2 * half + 1));
        }
    }
}

uint32_t encode(double value, Sum sum) {
    if (sum == Sum::kFloat) return std::bit_cast<uint32_t>(canonical(static_cast<float>(value)));
    if (sum == Sum::kSaturated) value = std::clamp(value, -0x1p31, 0x1p31 - 1);
    return static_cast<uint32_t>(static_cast<int64_t>(value));
}

void encode_register(const Tiles& tiles, Sum sum, int r, uint32_t* out) {
    if (sum == Sum::kHalf) {
        const double* from = tiles.c[8 * r];
        for (int l = 0; l < kLanes; ++l)
            out[l] = Half::encode(from[2 * l]) | uint32_t{Half::encode(from[2 * l + 1])} << 16;
    } else {
        const double* from = tiles.c[8 * (r >> 1)] + (r & 1);
        for (int l = 0; l < kLanes; ++l) out[l] = encode(from[2 * l], sum);
    }
}

// ---- what is uninitialised

// Spreads along its row of A or column of B; unless told to spread, it is a fault.
struct Poison {
    uint32_t rows = 0, columns = 0, accumulators[4] = {};

    uint32_t of_register(Sum sum, int r) const {
        uint32_t lanes = accumulators[r];
        if (!(rows | columns)) return lanes;
        bool pair = sum == Sum::kHalf;
        for (int l = 0; l < kLanes; ++l) {
            int row = l / 4 + 8 * (pair ? r : r >> 1), column = 2 * (l % 4);
            uint32_t touched = pair ? 3u << column : 1u << (column + (r & 1));
            if ((rows >> row & 1) || (columns & touched)) lanes |= 1u << l;
        }
        return lanes;
    }
};

// A bit for each g that has a poisoned lane.
uint32_t quads(uint32_t lanes) {
    uint32_t out = 0;
    for (int g = 0; lanes && g < 8; ++g)
        if (lanes >> (4 * g) & 15) out |= 1u << g;
    return out;
}

// ---- the products

void multiply(Tiles& tiles, int k) {
    constexpr int kAtOnce = 8;  // sums that fit the CPU's registers and hide its latency
    for (int first = 0; first < kRows; first += kAtOnce) {
        Row sums[kAtOnce];
        for (int i = 0; i < kAtOnce; ++i) sums[i] = *tiles.row_of_c(first + i);
        for (int i = 0; i < k; ++i)
            for (int row = 0; row < kAtOnce; ++row)
                sums[row] += tiles.a[first + row][i] * *tiles.row_of_b(i);
        for (int i = 0; i < kAtOnce; ++i) *tiles.row_of_c(first + i) = sums[i];
    }
}

struct Metadata {
    const Operand& words;
    int bits, k, selector;
    bool ordered;

    int lanes_that_supply() const { return k / 16; }  // of the four in a quad
    std::pair<int, int> lane_and_shift(int row, int group) const {
        int quad = 4 * (row % 8), upper = row / 8;
        if (bits == 8) return {quad + 2 * (group / 8) + upper, 4 * (group % 8)};
        return {quad + lanes_that_supply() * selector + group / 4, 16 * upper + 4 * (group % 4)};
    }
};

void multiply_sparse(Warp& w, Tiles& tiles, const Metadata& meta, Poison& poison) {
    bool spread = w.machine->spread_poison;
    if (meta.selector < 0 || meta.selector >= 4 / meta.lanes_that_supply())
        w.fault("sparsity selector " + std::to_string(meta.selector) + " is out of range");
    auto* words = source<uint32_t>(w, meta.words);
    for (int row = 0; row < kRows; ++row) {
        Row sum = *tiles.row_of_c(row);
        for (int group = 0; group < meta.k / 4; ++group) {
            auto [lane, shift] = meta.lane_and_shift(row, group);
            int first = words[lane] >> shift & 3, second = words[lane] >> (shift + 2) & 3;
            bool unknown = poisoned(w, meta.words) >> lane & 1;
            if (unknown || first == second || (meta.ordered && first > second)) {
                if (!spread && unknown)
                    w.fault("uninitialised metadata reaches the tensor core", lane);
                if (!spread)
                    w.fault("invalid 2:4 metadata: positions " + std::to_string(first) + " and " +
                                std::to_string(second) + " of row " + std::to_string(row) +
                                ", group " + std::to_string(group) +
                                (first == second ? " are equal" : " do not rise"),
                            lane);
                poison.rows |= 1u << row;
                continue;
            }
            sum += tiles.a[row][2 * group] * *tiles.row_of_b(4 * group + first);
            sum += tiles.a[row][2 * group + 1] * *tiles.row_of_b(4 * group + second);
        }
        *tiles.row_of_c(row) = sum;
    }
}

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
        multiply_sparse(w, tiles, {meta[0], type_a.bits, k, selector, in.mode[5] != 0}, poison);
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

int element(std::string_view name) {
    for (size_t i = 0; i < std::size(kElements); ++i)
        if (kElements[i].name == name) return static_cast<int>(i);
    return -1;
}

// The accumulators' type or -1 where the family has no such form.
int accumulators(std::string_view type, Family family, bool saturate) {
    bool integer = family == Family::kInteger;
    if (saturate && !integer) return -1;
    if (type == "s32" && integer)
        return static_cast<int>(saturate ? Sum::kSaturated : Sum::kInteger);
    if (type == "f32" && !integer) return static_cast<int>(Sum::kFloat);
    bool has_half = family == Family::kHalf || family == Family::kFp8;
    return type == "f16" && has_half ? static_cast<int>(Sum::kHalf) : -1;
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
