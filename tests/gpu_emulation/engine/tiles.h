// What mma and wgmma share: a warp's 16 x 8 tile of the product, its factors and accumulators in
// fragment order (mma.cpp draws it), sparse metadata, and what is uninitialised.
//
// 32 words are 8 rows of 16 bytes: one register of a fragment, or a core matrix in shared memory.
#pragma once
#include <algorithm>
#include <array>
#include <bit>

#include "elements.h"
#include "machine.h"

namespace emu {

constexpr int kRows = 16, kColumns = 8, kMostStored = 32, kMostK = 64;

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
inline int registers_of(Sum sum) { return sum == Sum::kHalf ? 2 : 4; }

template <class T>
void load_pairs(double* half_tile, Words even, Words odd) {
    for (int l = 0; l < kLanes; ++l) {
        half_tile[2 * l] = std::bit_cast<T>(even[l]);
        half_tile[2 * l + 1] = std::bit_cast<T>(odd[l]);
    }
}

inline void load_c(Tiles& tiles, const Warp& w, Sum sum, const Operand* c) {
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

inline uint32_t encode(double value, Sum sum) {
    if (sum == Sum::kFloat) return std::bit_cast<uint32_t>(canonical(static_cast<float>(value)));
    if (sum == Sum::kSaturated) value = std::clamp(value, -0x1p31, 0x1p31 - 1);
    return static_cast<uint32_t>(static_cast<int64_t>(value));
}

inline void encode_register(const Tiles& tiles, Sum sum, int r, uint32_t* out) {
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
inline uint32_t quads(uint32_t lanes) {
    uint32_t out = 0;
    for (int g = 0; lanes && g < 8; ++g)
        if (lanes >> (4 * g) & 15) out |= 1u << g;
    return out;
}

// ---- the products

inline void multiply(Tiles& tiles, int k) {
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
    Words words;
    uint32_t unknown;  // lanes whose word is uninitialised
    int bits, k, selector;
    bool ordered;

    int lanes_that_supply() const { return k / 16; }  // of the four in a quad
    std::pair<int, int> lane_and_shift(int row, int group) const {
        int quad = 4 * (row % 8), upper = row / 8;
        if (bits == 8) return {quad + 2 * (group / 8) + upper, 4 * (group % 8)};
        return {quad + lanes_that_supply() * selector + group / 4, 16 * upper + 4 * (group % 4)};
    }
};

inline void multiply_sparse(Warp& w, Tiles& tiles, const Metadata& meta, Poison& poison) {
    bool spread = w.machine->spread_poison;
    if (meta.selector < 0 || meta.selector >= 4 / meta.lanes_that_supply())
        w.fault("sparsity selector " + std::to_string(meta.selector) + " is out of range");
    for (int row = 0; row < kRows; ++row) {
        Row sum = *tiles.row_of_c(row);
        for (int group = 0; group < meta.k / 4; ++group) {
            auto [lane, shift] = meta.lane_and_shift(row, group);
            int first = meta.words[lane] >> shift & 3, second = meta.words[lane] >> (shift + 2) & 3;
            bool unknown = meta.unknown >> lane & 1;
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

// The accumulators' type or -1 where the family has no such form.
inline int accumulators(std::string_view type, Family family, bool saturate) {
    bool integer = family == Family::kInteger;
    if (saturate && !integer) return -1;
    if (type == "s32" && integer)
        return static_cast<int>(saturate ? Sum::kSaturated : Sum::kInteger);
    if (type == "f32" && !integer) return static_cast<int>(Sum::kFloat);
    bool has_half = family == Family::kHalf || family == Family::kFp8;
    return type == "f16" && has_half ? static_cast<int>(Sum::kHalf) : -1;
}

}  // namespace emu
