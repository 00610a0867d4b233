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
//
// Where x has 8 bits too (sparse24_int8_sm80a8.cu) values are fragments as they lie, of another
// instruction.
#pragma once
#include "elements.cuh"
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

// What a lane has of a panel's step, the four row tiles of it, and what the kernels do with it.
// Element: of y, and here of x.
template <class Element_, int kBits>
struct HalfStep {
    using Element = Element_;
    using Sum = float;
    static constexpr int kLoads = kBits / 4, kWords = kBits / 4;  // words of a row tile
    static constexpr int kPanelBytes = sparse24_fragments::values_bytes(kBits);
    static constexpr bool kHasScales = kBits < 16, kHasMeta = false;
    uint32_t words[sparse24_fragments::kRowTiles * kWords];
    uint32_t scales[sparse24_fragments::kRowTiles];  // of rows g and g + 8; none at 16 bits

    static constexpr int load_index(int step, int i) {
        return kBits == 16 ? i * sparse24_fragments::kSteps + step : step * kLoads + i;
    }

    template <int kTile>
    __device__ __forceinline__ uint4 fragment() const {
        const uint32_t* codes = words + kTile * kWords;
        if constexpr (kBits == 16) return make_uint4(codes[0], codes[1], codes[2], codes[3]);
        const uint32_t upper = ptx::permute<0x1010>(scales[kTile], 0);
        const uint32_t lower = ptx::permute<0x3232>(scales[kTile], 0);
        uint32_t out[4];
        ptx::unrolled<4>([&](auto i) {
            out[i.value] = ptx::fma_pairs(whole_numbers<kBits, i.value>(codes, Element{}),
                                          i.value % 2 == 0 ? upper : lower, 0, Element{});
        });
        return make_uint4(out[0], out[1], out[2], out[3]);
    }

    // panel_meta: a word of each row tile, which serves both steps.
    template <int kTile>
    __device__ uint32_t meta(const uint32_t (&panel_meta)[4]) const {
        return panel_meta[kTile];
    }

    template <int kStep>
    __device__ static void multiply(float (&sums)[4], const uint4& a, const uint4& b,
                                    uint32_t meta) {
        ptx::mma_sparse<kStep>(sums, a, b, meta, Element{});
    }

    // Sums of y^T: of features row + g and row + g + 8, tokens token + 2 t and token + 2 t + 1.
    __device__ static void to_float(float (&)[4]) {}
    __device__ static void scale(float (&)[4], const Sparse24Arguments&, int, int, int) {}
};

// The same where x and W are whole numbers of 8 bits: a pair of them is a column. A scale of each
// row of W and of each token come last.
template <class Element_>
struct ByteStep {
    using Element = Element_;
    using Sum = int;
    static constexpr int kLoads = sparse24_fragments::kRowTiles;
    static constexpr int kPanelBytes = sparse24_fragments::values_bytes(16);
    static constexpr bool kHasScales = false, kHasMeta = true;
    uint32_t words[sparse24_fragments::kRowTiles * 4], own_meta[4];

    static constexpr int load_index(int step, int i) {
        return i * sparse24_fragments::kSteps + step;
    }

    template <int kTile>
    __device__ __forceinline__ uint4 fragment() const {
        const uint32_t* w = words + kTile * 4;
        return make_uint4(w[0], w[1], w[2], w[3]);
    }

    template <int kTile>
    __device__ uint32_t meta(const uint32_t (&)[4]) const {
        return own_meta[kTile];
    }

    template <int kStep>
    __device__ static void multiply(int (&sums)[4], const uint4& a, const uint4& b, uint32_t meta) {
        ptx::mma_sparse_bytes(sums, a, b, meta);
    }

    __device__ static void to_float(int (&sums)[4]) {
        for (int& sum : sums) sum = __float_as_int(__int2float_rn(sum));
    }
    __device__ static void scale(float (&sums)[4], const Sparse24Arguments& p, int row, int token,
                                 int lane) {
        const auto* of_rows = reinterpret_cast<const Element*>(p.scales);
        row += lane / 4, token += lane % 4 * 2;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int r = row + half * 8;
            const float of_row = r < p.N ? prunekern::to_float(of_rows[r]) : 0.f;
#pragma unroll
            for (int i = 0; i < 2; ++i)
                sums[half * 2 + i] *= token + i < p.M ? of_row * p.token_scales[token + i] : 0.f;
        }
    }
};

// How a lane reads the panels of a row group, one after the other. `load` takes a constant offset
// in bytes and an address.
template <class Step>
struct PanelReader {
    const char *values, *meta;  // of the current panel, at this lane's place
    const char* scales;         // of the row group, at this lane's place
    int step, shift;            // of the current panel; a scale serves 2^shift steps

    static constexpr int kPanelMeta =
        sparse24_fragments::kMetaBytes * (Step::kHasMeta ? sparse24_fragments::kSteps : 1);

    __device__ void begin(const Sparse24Arguments& p, int row_group, int column_tile, int lane) {
        using namespace sparse24_fragments;
        const int64_t panel = int64_t{row_group} * p.stripes.column_tiles + column_tile;
        values = p.values + panel * Step::kPanelBytes + lane * 16;
        meta = p.meta + panel * kPanelMeta + lane * 16;
        if constexpr (Step::kHasScales) {
            scales = p.scales + int64_t{row_group} * p.scale_count * kScalesBytes + lane / 4 * 16;
            step = column_tile * kSteps, shift = p.scale_shift;
        }
    }

    template <int kPanels>
    __device__ void advance() {
        values += kPanels * Step::kPanelBytes, meta += kPanels * kPanelMeta;
        if constexpr (Step::kHasScales) step += kPanels * sparse24_fragments::kSteps;
    }

    // Step kStep of the panel kPanel after the current one.
    template <int kPanel, int kStep, class Load>
    __device__ void load_step(Step& to, Load load) const {
        using namespace sparse24_fragments;
        ptx::unrolled<Step::kLoads>([&](auto i) {
            constexpr int kOffset =
                kPanel * Step::kPanelBytes + Step::load_index(kStep, i.value) * kLoadBytes;
            put(load(ptx::Constant<kOffset>{}, values), to.words + 4 * i.value);
        });
        if constexpr (Step::kHasMeta)
            put(load(ptx::Constant<kPanel * kPanelMeta + kStep * kMetaBytes>{}, meta), to.own_meta);
        if constexpr (Step::kHasScales) {
            const int scale = (step + kPanel * kSteps + kStep) >> shift;
            put(ptx::load_shared_by_many<0>(scales + scale * kScalesBytes), to.scales);
        }
    }

    // What serves both steps of it.
    template <int kPanel, class Load>
    __device__ void load_meta(uint32_t (&to)[4], Load load) const {
        if constexpr (!Step::kHasMeta) put(load(ptx::Constant<kPanel * kPanelMeta>{}, meta), to);
    }

  private:
    __device__ static void put(const uint4& from, uint32_t* to) {
        to[0] = from.x, to[1] = from.y, to[2] = from.z, to[3] = from.w;
    }
};

}  // namespace prunekern
