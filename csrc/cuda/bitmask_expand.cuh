// From a tile's kept values in shared memory to mma.m16n8k16 A fragments (bitmask_fragments.h).
//
//   word      a lane's counts, a byte for each nibble and row, added up over this lane and all
//             above it by five shuffles: as two words while four bits are enough, then as four
//
//   values    | row g of nibble 0 | row g + 8 | row g of nibble 1 | row g + 8 | ...
//             | lane 31, ... 1, 0 | 0, 1, ... | 31, ...           |
//             ^ start             ·           ^ start of nibble 1
//               + sum: lane's end ·             - sum: lane's first
//
// From there a lane reads its two values of a row, V0 and V1, whether it has them or not, and puts
// them where bits are set; all else is zero. No population count, no table in memory; a dp4a
// extracts, scales and adds a count at once. The values that one load of a warp reads are at most
// 64 neighbours: no bank conflicts, whatever the pattern.
#pragma once
#include "bitmask_fragments.h"
#include "ptx.cuh"

namespace prunekern::bitmask_fragments {

// A slot of shared memory for a tile's values. Lanes without a value read up to four bytes before
// and beyond: those and all that was never copied to must be initialised, whatever they hold.
constexpr int kSlotBytes = kTileBytes + kUnitBytes;

// Of a lane's nibbles 0, 2, 4, 6 and 1, 3, 5, 7, a byte each.
struct Counts {
    uint32_t even, odd;

    template <int kNibble>
    __device__ __forceinline__ uint32_t of() const {
        return kNibble % 2 ? odd : even;
    }
};

struct Tile {
    uint32_t word;
    Counts upper, lower;  // kept weights of rows g and g + 8, in this lane and all above it
};

// Of some tiles side by side, as a shuffle takes some twenty clocks.
template <int kCount>
__device__ __forceinline__ void count(const uint32_t (&words)[kCount], Tile (&tiles)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        const uint32_t word = words[i], pairs = word - (word >> 1 & 0x55555555);
        uint32_t upper = pairs & 0x33333333, lower = pairs >> 2 & 0x33333333;
        ptx::add_from_above<1>(upper), ptx::add_from_above<1>(lower);
        ptx::add_from_above<2>(upper), ptx::add_from_above<2>(lower);  // eight at most
        tiles[i] = {word,
                    {upper & 0x0f0f0f0f, upper >> 4 & 0x0f0f0f0f},
                    {lower & 0x0f0f0f0f, lower >> 4 & 0x0f0f0f0f}};
    }
    auto step = [&](auto distance) {
#pragma unroll
        for (Tile& t : tiles) {
            ptx::add_from_above<distance.value>(t.upper.even);
            ptx::add_from_above<distance.value>(t.upper.odd);
            ptx::add_from_above<distance.value>(t.lower.even);
            ptx::add_from_above<distance.value>(t.lower.odd);
        }
    };
    step(ptx::Constant<4>{}), step(ptx::Constant<8>{}), step(ptx::Constant<16>{});
}

// PRMT selectors that place the values of one row, for four nibbles: byte f of `first` for the
// first column of nibble f, byte f of `second` for the second. By the two bits of the columns:
//
//     bits      0 0     1 0     0 1     1 1
//     first     zero    V0      zero    V0
//     second    zero    zero    V0      V1
struct Selectors {
    uint32_t first, second;

    // bits: those two in the lower half of each of four nibbles.
    __device__ __forceinline__ explicit Selectors(uint32_t bits)
        : first(ptx::look_up<0x10321032>(bits)), second(ptx::look_up<0x54103232>(bits)) {}

    template <int kNibble>
    __device__ __forceinline__ uint32_t of() const {
        constexpr int kByte = kNibble % 4;
        return ptx::permute<kByte | (4 + kByte) << 4>(first, second);
    }
};

// A fragments of a tile whose values begin at `slot` in shared memory.
__device__ __forceinline__ void expand(const Tile& tile, uint32_t slot,
                                       uint4 (&fragments)[kSteps]) {
    const Counts totals{ptx::broadcast<0>(tile.upper.even + tile.lower.even),  // 128 at most
                        ptx::broadcast<0>(tile.upper.odd + tile.lower.odd)};
    const uint32_t upper = tile.word & 0x33333333, lower = tile.word >> 2 & 0x33333333;
    const Selectors upper_selectors[] = {Selectors(upper), Selectors(upper >> 16)};
    const Selectors lower_selectors[] = {Selectors(lower), Selectors(lower >> 16)};
    uint32_t start = slot;
    ptx::unrolled<kNibbles>([&](auto f) {
        constexpr int kNibble = f.value;
        constexpr uint32_t kTwo = 2u << kNibble / 2 * 8, kLessTwo = 0xfeu << kNibble / 2 * 8;
        const uint32_t end = ptx::dot_bytes<kTwo>(tile.upper.of<kNibble>(), start);
        start = ptx::dot_bytes<kTwo>(totals.of<kNibble>(), start);
        const uint32_t first = ptx::dot_bytes<kLessTwo>(tile.lower.of<kNibble>(), start);
        uint32_t* registers = &fragments[kNibble / 2].x + kNibble % 2 * 2;
        registers[0] = ptx::permute(ptx::load_half<-2>(end), ptx::load_half<-4>(end),
                                    upper_selectors[kNibble / 4].of<kNibble>());
        registers[1] = ptx::permute(ptx::load_half<0>(first), ptx::load_half<2>(first),
                                    lower_selectors[kNibble / 4].of<kNibble>());
    });
}

}  // namespace prunekern::bitmask_fragments
