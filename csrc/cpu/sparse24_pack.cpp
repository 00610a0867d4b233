// Canonical 2:4 tensors to the row-interleaved layouts of avx2, avx512, avx512bf16 and amx.
//
//   canonical   values [N][2G]            meta [N][G/2] bytes
//   packed      T tiles of R rows, C chunks of 8 groups:
//     meta      [T][C][R] words           bits 4i..4i+3: group 8c + i of row R t + r
//     values    [T][8C][R][2] (bf16)      a row's kept pair is one 32-bit word
//               [T][8C][2][R] (others)    first kept of R rows, then the second
//   rows and groups beyond N and G: values +0, metadata of positions 0 and 1
//
// Limit: one pass, memory.
#include <array>
#include <cstring>

#include "../kernels.h"
#include "../sparse24.h"

namespace prunekern {
namespace {

using namespace sparse24_format;

// A byte of canonical metadata, two groups, to the same byte of a packed word in pair codes.
constexpr std::array<uint8_t, 256> kPairBytes = [] {
    std::array<uint8_t, 256> bytes{};
    for (uint32_t b = 0; b < 256; ++b)
        if (is_valid(b & 0xf) && is_valid(b >> 4))
            bytes[b] = static_cast<uint8_t>(pair_code(b & 0xf) | (pair_code(b >> 4) | 8) << 4);
    return bytes;
}();

// Four bytes of metadata from byte `begin` on; kEmptyNibble in both groups of those beyond the end.
uint32_t meta_word(const uint8_t* meta, int64_t begin, int64_t meta_bytes, bool pair_codes) {
    uint32_t word = 0;
    for (int64_t i = 0; i < 4; ++i) {
        const bool inside = begin + i < meta_bytes;
        const uint32_t byte = inside ? meta[begin + i] : kEmptyNibble | kEmptyNibble << 4;
        word |= (pair_codes ? kPairBytes[byte] : byte) << (8 * i);
    }
    return word;
}

// Chunk by chunk, as the rows of a tile lie side by side there: each line is written once.
template <class T>
void pack_tiles(const Sparse24Pack& p, int64_t tile_begin, int64_t tile_end) {
    const int64_t R = p.tile_rows, G = (p.K + 3) / 4, C = (G + 7) / 8;
    const int64_t meta_bytes = (G + 1) / 2;
    const bool pairs = p.dtype == DType::kBFloat16;
    const int64_t step = pairs ? 2 : 1, second = pairs ? 1 : R;  // from row to row, value to value
    for (int64_t t = tile_begin; t < tile_end; ++t) {
        T* tile_values = static_cast<T*>(p.packed_values) + t * 8 * C * R * 2;
        for (int64_t c = 0; c < C; ++c) {
            const int64_t groups = G - 8 * c < 8 ? G - 8 * c : 8;
            for (int64_t r = 0; r < R; ++r) {
                const int64_t n = t * R + r;
                const bool inside = n < p.N;
                const uint8_t* meta = p.meta + n * meta_bytes;
                p.packed_meta[(t * C + c) * R + r] = static_cast<int32_t>(
                    meta_word(meta, 4 * c, inside ? meta_bytes : 0, p.pair_codes));
                T kept[16] = {};
                if (inside)
                    std::memcpy(kept, static_cast<const T*>(p.values) + (n * G + 8 * c) * 2,
                                groups * 2 * sizeof(T));
                T* out = tile_values + 8 * c * R * 2 + r * step;
                for (int64_t i = 0; i < 8; ++i, out += 2 * R) {
                    out[0] = kept[2 * i];
                    out[second] = kept[2 * i + 1];
                }
            }
        }
    }
}

}  // namespace

void sparse24_pack(const Sparse24Pack& p) {
    const auto body = [](void* ctx, int64_t begin, int64_t end) {
        const auto& p = *static_cast<const Sparse24Pack*>(ctx);
        if (p.dtype == DType::kFloat32)
            pack_tiles<uint32_t>(p, begin, end);
        else
            pack_tiles<uint16_t>(p, begin, end);
    };
    const int64_t tiles = (p.N + p.tile_rows - 1) / p.tile_rows;
    p.parallel_for(tiles, 1, body, const_cast<Sparse24Pack*>(&p));
}

}  // namespace prunekern
