// A step of a packed panel in registers, and its A fragments of mma.sp (sparse24_fragments.h).
//
// Values of 16 bits are fragments as they lie. Whole numbers of 8 and 4 bits become elements by
// arithmetic on bits: a code u in the lowest bits of a power of two's mantissa is added to it.
//
//   fp16   0x64uu   1024 + u      8 bits: prmt lays u in            minus 1024 + 128
//          0x640u   1024 + u      4 bits: lop3 masks and lays in    minus 1024 + 8
//          0x64u0   1024 + 16 u   the nibble above it, / 16         minus 64 + 8
//   bf16   0x430u   128 + u       4 bits                            minus 128 + 8
//          0x43uu                 8 bits are one more than the mantissa has: the lower seven give
//                                 128 + u % 128, from which by the top bit 128 or 256 goes
//
// An fma of a pair takes the power away, exactly; another brings the scale and rounds once. So
// W is to the bit what `decompress` makes, at any number of tokens. Instructions for the eight
// values of a lane and row tile, beside two that spread the scales of its rows:
//
//           8 bits                      4 bits
//   fp16    4 prmt, 8 fma               1 shift, 4 lop3, 8 fma
//   bf16    2 shifts, 8 lop3, 8 fma     3 shifts, 4 lop3, 8 fma
//
// Scales on the accumulators instead would take 4 fma a token tile where 4 here serve all of them.
#pragma once
#include "ptx.cuh"
#include "sparse24_arguments.h"

namespace prunekern {

// A pair of whole numbers: register kRegister of the fragment that has these code words.
template <int kBits, int kRegister>
__device__ __forceinline__ uint32_t whole_numbers(const uint32_t* words, __half type) {
    constexpr uint32_t kOne = 0x3c003c00, kSixteenth = 0x2c002c00;
    constexpr uint32_t k1024 = 0x64006400, k1024Bytes = 0x64646464;
    constexpr uint32_t kMinus1152 = 0xe480e480, kMinus1032 = 0xe408e408, kMinus72 = 0xd480d480;
    if constexpr (kBits == 8) {
        constexpr uint32_t kBytes = kRegister % 2 == 0 ? 0x4240 : 0x4341;
        const uint32_t code = ptx::permute<kBytes>(words[kRegister / 2], k1024Bytes);
        return ptx::fma_pairs(code, kOne, kMinus1152, type);
    } else {
        const uint32_t byte = words[0] >> kRegister / 2 * 8;
        if constexpr (kRegister % 2 == 0)
            return ptx::fma_pairs(ptx::mask_flip<0x000f000f, k1024>(byte), kOne, kMinus1032, type);
        else
            return ptx::fma_pairs(ptx::mask_flip<0x00f000f0, k1024>(byte), kSixteenth, kMinus72,
                                  type);
    }
}
template <int kBits, int kRegister>
__device__ __forceinline__ uint32_t whole_numbers(const uint32_t* words, __nv_bfloat16 type) {
    constexpr uint32_t kOne = 0x3f803f80, kMinusOne = 0xbf80bf80, kMinus136 = 0xc308c308;
    constexpr uint32_t k128 = 0x43004300, k256 = 0x43804380;
    if constexpr (kBits == 8) {
        const uint32_t byte = words[kRegister / 2] >> kRegister % 2 * 8;
        const uint32_t low = ptx::mask_flip<0x007f007f, k128>(byte);
        const uint32_t power = ptx::mask_flip<0x00800080, k256>(byte);
        return ptx::fma_pairs(power, kMinusOne, low, type);
    } else {
        const uint32_t nibble = words[0] >> kRegister * 4;
        return ptx::fma_pairs(ptx::mask_flip<0x000f000f, k128>(nibble), kOne, kMinus136, type);
    }
}

// Of a panel's step: what a lane has of the four row tiles.
template <class Element, int kBits>
struct StepValues {
    static constexpr int kLoads = kBits / 4, kWords = kBits / 4;  // words of a row tile
    uint32_t words[sparse24_fragments::kRowTiles * kWords];
    uint32_t scales[sparse24_fragments::kRowTiles];  // of rows g and g + 8; none at 16 bits

    template <int kTile>
    __device__ __forceinline__ uint4 fragment() const {
        const uint32_t* codes = words + kTile * kWords;
        if constexpr (kBits == 16) return make_uint4(codes[0], codes[1], codes[2], codes[3]);
        const uint32_t upper = ptx::permute<0x1010>(scales[kTile], 0);
        const uint32_t lower = ptx::permute<0x3232>(scales[kTile], 0);
        uint32_t out[4];
        ptx::unrolled<4>([&](auto i) {
            out[i.value] =
                ptx::fma_pairs(whole_numbers<kBits, i.value>(codes, Element{}),
                               i.value % 2 == 0 ? upper : lower, 0, Element{});
        });
        return make_uint4(out[0], out[1], out[2], out[3]);
    }
};

// How a lane reads the panels of a row group one after the other. Loads: W's, at constant offsets.
template <class Element, int kBits>
struct PanelReader {
    static constexpr int kValuesBytes = sparse24_fragments::values_bytes(kBits);
    using Values = StepValues<Element, kBits>;

    const char *values, *meta;  // of the current panel, at this lane's place
    const char* scales;         // of the row group, at this lane's place
    int step, shift;            // of the current panel; a scale serves 2^shift steps

    __device__ void begin(const Sparse24Arguments& p, int row_group, int column_tile, int lane) {
        using namespace sparse24_fragments;
        const int64_t panel = int64_t{row_group} * p.stripes.column_tiles + column_tile;
        values = p.values + panel * kValuesBytes + lane * 16;
        meta = p.meta + panel * kMetaBytes + lane * 16;
        if constexpr (kBits < 16) {
            scales = p.scales + int64_t{row_group} * p.scale_count * kScalesBytes + lane / 4 * 16;
            step = column_tile * kSteps, shift = p.scale_shift;
        }
    }

    template <int kPanels>
    __device__ void advance() {
        values += kPanels * kValuesBytes, meta += kPanels * sparse24_fragments::kMetaBytes;
        if constexpr (kBits < 16) step += kPanels * sparse24_fragments::kSteps;
    }

    // Step kStep of the panel kPanel after the current one; load: an Offset<bytes> and an address
    // to 16 bytes.
    template <int kPanel, int kStep, class Load>
    __device__ void load_values(Values& to, Load load) const {
        using namespace sparse24_fragments;
        ptx::unrolled<Values::kLoads>([&](auto i) {
            constexpr int kLoad = kBits == 16 ? i.value * kSteps + kStep
                                              : kStep * Values::kLoads + i.value;
            put(load(ptx::Constant<kPanel * kValuesBytes + kLoad * kLoadBytes>{}, values),
                to.words + 4 * i.value);
        });
        if constexpr (kBits < 16) {
            const int scale = (step + kPanel * kSteps + kStep) >> shift;
            put(ptx::load_shared_by_many<0>(scales + scale * kScalesBytes), to.scales);
        }
    }
    template <int kPanel, class Load>
    __device__ uint4 load_meta(Load load) const {
        return load(ptx::Constant<kPanel * sparse24_fragments::kMetaBytes>{}, meta);
    }

  private:
    __device__ static void put(const uint4& from, uint32_t* to) {
        to[0] = from.x, to[1] = from.y, to[2] = from.z, to[3] = from.w;
    }
};

}  // namespace prunekern
