// What training does with canonical 2:4 tensors at every step, by moving bits, whatever the dtype.
//
//   decompress   values, meta -> W [N][K]           dL/dx = dL/dy W where W^T is not 2:4
//   take         dense [N][K], meta -> values       dL/dW at the kept positions
//   transpose    values, meta -> those of W^T       dL/dx by the kernel of the product where it is
//
// W^T is 2:4 if each block of 4 x 4 keeps at most two a row and two a column:
//
//   rows 4b..4b+3 of W, group g        rows 4g..4g+3 of W^T, group b
//      a b . .                            a . d .        free slots of a pair: +0 at the lowest
//      . . c .                 ->         b . . f        position that is left, as compress fills
//      d . . e                            . c . .        them
//      . f . .                            . . e .
//
// Limit: one pass over both forms, memory.
#include <array>
#include <atomic>
#include <cstring>

#include "../kernels.h"
#include "../sparse24.h"

namespace prunekern {
namespace {

using namespace sparse24_format;

// Groups and blocks of a tile that is transposed in L1: whole cache lines of fp32 in both forms.
constexpr int64_t kTile = 8;

struct Sizes {
    int64_t N, K, G, meta_bytes;
    explicit Sizes(const Sparse24Convert& c)
        : N(c.N), K(c.K), G((c.K + 3) / 4), meta_bytes((G + 1) / 2) {}
};

template <class T>
void decompress_rows(const Sparse24Convert& c, int64_t begin, int64_t end) {
    const Sizes s(c);
    for (int64_t n = begin; n < end; ++n) {
        const T* values = static_cast<const T*>(c.values) + n * 2 * s.G;
        const uint8_t* meta = c.meta + n * s.meta_bytes;
        T* dense = static_cast<T*>(c.dense) + n * s.K;
        std::memset(dense, 0, s.K * sizeof(T));
        for (int64_t g = 0; g < s.G; ++g) {
            const uint32_t nibble = nibble_at(meta, g);
            const int64_t first = 4 * g + first_position(nibble);
            const int64_t second = 4 * g + second_position(nibble);
            if (first < s.K) dense[first] = values[2 * g];
            if (second < s.K) dense[second] = values[2 * g + 1];
        }
    }
}

template <class T>
void take_rows(const Sparse24Convert& c, int64_t begin, int64_t end) {
    const Sizes s(c);
    for (int64_t n = begin; n < end; ++n) {
        const T* dense = static_cast<const T*>(c.dense) + n * s.K;
        const uint8_t* meta = c.meta + n * s.meta_bytes;
        T* values = static_cast<T*>(c.values) + n * 2 * s.G;
        for (int64_t g = 0; g < s.G; ++g) {
            const uint32_t nibble = nibble_at(meta, g);
            const int64_t first = 4 * g + first_position(nibble);
            const int64_t second = 4 * g + second_position(nibble);
            values[2 * g] = first < s.K ? dense[first] : T{0};
            values[2 * g + 1] = second < s.K ? dense[second] : T{0};
        }
    }
}

// What a block of W^T takes from the eight values of its block of W, by the pairs of four rows.
struct BlockMap {
    uint8_t from[8];     // slot of each value in W, or kNothing
    uint8_t nibbles[4];  // of the rows of W^T
    uint8_t broken;      // bit j: row j of W^T would keep more than two
};
constexpr uint8_t kNothing = 8;
constexpr uint32_t kNoRow = 6;  // beside the six pair codes
constexpr uint32_t kCodes = 7;

constexpr std::array<BlockMap, kCodes * kCodes * kCodes * kCodes> kBlockMaps = [] {
    std::array<BlockMap, kCodes * kCodes * kCodes * kCodes> maps{};
    constexpr uint8_t kPairs[6][2] = {{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 3}};
    for (uint32_t index = 0; index < maps.size(); ++index) {
        BlockMap& map = maps[index];
        uint8_t rows[4][4] = {}, slots[4][4] = {}, count[4] = {};
        uint32_t codes = index;
        for (uint8_t row = 0; row < 4; ++row, codes /= kCodes) {
            if (codes % kCodes == kNoRow) continue;
            for (uint8_t i = 0; i < 2; ++i) {
                const uint8_t column = kPairs[codes % kCodes][i];
                rows[column][count[column]] = row;
                slots[column][count[column]++] = 2 * row + i;
            }
        }
        for (uint8_t j = 0; j < 4; ++j) {
            if (count[j] > 2) map.broken |= 1 << j;
            // A free slot has the lowest position that is left: behind row 0, else before the row.
            const bool before = count[j] == 1 && rows[j][0] != 0;
            const uint8_t first = count[j] > 0 ? slots[j][0] : kNothing;
            map.from[2 * j] = before ? kNothing : first;
            map.from[2 * j + 1] = before ? first : count[j] > 1 ? slots[j][1] : kNothing;
            map.nibbles[j] = static_cast<uint8_t>(before         ? encode(0, rows[j][0])
                                                  : count[j] > 1 ? encode(rows[j][0], rows[j][1])
                                                                 : kEmptyNibble);
        }
    }
    return maps;
}();

// Of a nibble; kNoRow for one that is no pair.
constexpr std::array<uint8_t, 16> kCodeOf = [] {
    std::array<uint8_t, 16> codes{};
    for (uint32_t nibble = 0; nibble < 16; ++nibble)
        codes[nibble] = static_cast<uint8_t>(is_valid(nibble) ? pair_code(nibble) : kNoRow);
    return codes;
}();

// Groups [g0, g0 + kTile) of W, which become 4 kTile rows of W^T. Returns how many groups of those
// keep more than two.
template <class T>
int64_t transpose_groups(const Sparse24Convert& c, int64_t g0) {
    const Sizes s(c);
    const int64_t blocks = (s.N + 3) / 4, out_meta_bytes = (blocks + 1) / 2;
    const int64_t groups = s.G - g0 < kTile ? s.G - g0 : kTile;
    const int64_t rows = s.K - 4 * g0 < 4 * groups ? s.K - 4 * g0 : 4 * groups;
    int64_t broken = 0;
    for (int64_t b0 = 0; b0 < blocks; b0 += kTile) {
        T out[4 * kTile][2 * kTile];
        uint8_t nibbles[4 * kTile][kTile];
        const int64_t count = blocks - b0 < kTile ? blocks - b0 : kTile;
        if (count < kTile) std::memset(nibbles, kEmptyNibble, sizeof nibbles);
        // A line of each row, in another page each: nothing but this fetches the next tile's ahead.
        for (int64_t n = 4 * (b0 + kTile); n < 4 * (b0 + 2 * kTile) && n < s.N; ++n) {
            __builtin_prefetch(static_cast<const T*>(c.values) + (n * s.G + g0) * 2);
            __builtin_prefetch(c.meta + n * s.meta_bytes + g0 / 2);
        }
        for (int64_t b = 0; b < count; ++b) {
            const int64_t n0 = 4 * (b0 + b), present = s.N - n0 < 4 ? s.N - n0 : 4;
            for (int64_t g = 0; g < groups; ++g) {
                T slots[kNothing + 1] = {};
                uint32_t index = 0;
                for (int64_t i = 3; i >= 0; --i) {
                    const bool inside = i < present;
                    const int64_t n = inside ? n0 + i : n0;
                    const uint32_t nibble = nibble_at(c.meta + n * s.meta_bytes, g0 + g);
                    index = index * kCodes + (inside ? kCodeOf[nibble] : kNoRow);
                    std::memcpy(slots + 2 * i,
                                static_cast<const T*>(c.values) + (n * s.G + g0 + g) * 2,
                                2 * sizeof(T));
                }
                const BlockMap& map = kBlockMaps[index];
                for (int j = 0; j < 4; ++j) {
                    out[4 * g + j][2 * b] = slots[map.from[2 * j]];
                    out[4 * g + j][2 * b + 1] = slots[map.from[2 * j + 1]];
                    nibbles[4 * g + j][b] = map.nibbles[j];
                    broken += 4 * (g0 + g) + j < s.K && (map.broken >> j & 1);
                }
            }
        }
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t k = 4 * g0 + r;
            std::memcpy(static_cast<T*>(c.transposed_values) + (k * blocks + b0) * 2, out[r],
                        count * 2 * sizeof(T));
            uint8_t* meta = c.transposed_meta + k * out_meta_bytes + b0 / 2;
            for (int64_t i = 0; i < (count + 1) / 2; ++i)
                meta[i] = static_cast<uint8_t>(nibbles[r][2 * i] | nibbles[r][2 * i + 1] << 4);
        }
    }
    return broken;
}

template <void (*Wide)(const Sparse24Convert&, int64_t, int64_t),
          void (*Narrow)(const Sparse24Convert&, int64_t, int64_t)>
void over_rows(const Sparse24Convert& c) {
    const auto body = [](void* ctx, int64_t begin, int64_t end) {
        const auto& c = *static_cast<const Sparse24Convert*>(ctx);
        (c.element_bytes == 4 ? Wide : Narrow)(c, begin, end);
    };
    c.parallel_for(c.N, 16, body, const_cast<Sparse24Convert*>(&c));
}

}  // namespace

void sparse24_decompress(const Sparse24Convert& c) {
    over_rows<decompress_rows<uint32_t>, decompress_rows<uint16_t>>(c);
}

void sparse24_take(const Sparse24Convert& c) {
    over_rows<take_rows<uint32_t>, take_rows<uint16_t>>(c);
}

int64_t sparse24_transpose(const Sparse24Convert& c) {
    struct Work {
        const Sparse24Convert& c;
        std::atomic<int64_t> broken{0};
    } work{c};
    const auto body = [](void* ctx, int64_t begin, int64_t end) {
        auto& work = *static_cast<Work*>(ctx);
        for (int64_t tile = begin; tile < end; ++tile)
            work.broken += work.c.element_bytes == 4
                               ? transpose_groups<uint32_t>(work.c, tile * kTile)
                               : transpose_groups<uint16_t>(work.c, tile * kTile);
    };
    const int64_t groups = (c.K + 3) / 4;
    c.parallel_for((groups + kTile - 1) / kTile, 1, body, &work);
    return work.broken;
}

}  // namespace prunekern
