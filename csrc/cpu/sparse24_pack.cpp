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
#include <cstring>

#include "../kernels.h"
#include "../sparse24.h"

namespace prunekern {
namespace {

template <class T>
void pack_tiles(const Sparse24Pack& p, int64_t tile_begin, int64_t tile_end) {
    using namespace sparse24_format;
    const int64_t R = p.tile_rows, G = (p.K + 3) / 4, C = (G + 7) / 8;
    const int64_t meta_bytes = (G + 1) / 2;
    const bool pairs = p.dtype == DType::kBFloat16;
    for (int64_t t = tile_begin; t < tile_end; ++t) {
        T* tile_values = static_cast<T*>(p.packed_values) + t * 8 * C * R * 2;
        for (int64_t r = 0; r < R; ++r) {
            const int64_t n = t * R + r;
            const bool inside = n < p.N;
            const T* values = static_cast<const T*>(p.values) + (inside ? n * 2 * G : 0);
            const uint8_t* meta = p.meta + (inside ? n * meta_bytes : 0);
            for (int64_t c = 0; c < C; ++c) {
                uint32_t word = 0;
                for (int64_t i = 0; i < 8; ++i) {
                    const int64_t g = 8 * c + i;
                    const bool kept = inside && g < G;
                    const uint32_t nibble = kept ? nibble_at(meta, g) : kEmptyNibble;
                    const auto parity = static_cast<uint32_t>(i & 1);
                    word |= (p.pair_codes ? pair_code(nibble) | parity << 3 : nibble) << (4 * i);
                    for (int64_t j = 0; j < 2; ++j)
                        tile_values[(g * R) * 2 + (pairs ? 2 * r + j : j * R + r)] =
                            kept ? values[2 * g + j] : T{0};
                }
                p.packed_meta[(t * C + c) * R + r] = static_cast<int32_t>(word);
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
