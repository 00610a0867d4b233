// y[M,N] = x[M,K] W[N,K]^T with W 2:4 of int8 or int4 and bf16 scales, on AMX. The packed weight is
// that of sparse24_int_avx512.cpp, which also serves the fewest tokens.
//
// A group of 16 rows is expanded to two lines of a bf16 tile, as sparse24_amx.cpp draws them: its
// kept numbers times their scale, rounded to bf16 and put side by side in a lane, then spread by
// the bytes that the metadata picks.
//
// Rounding to bf16 is that of `decompress`: the product is the one of the dense bf16 weight.
//
// Limit: 0.625 or 0.375 bytes a weight are few, so that expansion binds up to some 32 tokens; from
// there on the products, see amx_linear.h.
#include "amx_linear.h"
#include "sparse24_int_tile.h"

namespace prunekern {
namespace {

using sparse24_int::kChunkGroups;
using sparse24_int::kTileRows;

// Bytes of a lane's kept pair that make its lane of line `line`, by metadata; 0x80 makes a zero.
constexpr int bytes_of(int nibble, int line) {
    int bytes = 0;
    for (int half = 0; half < 2; ++half) {
        const int input = 2 * line + half;
        const int word = input == (nibble & 3) ? 0x0100 : input == (nibble >> 2) ? 0x0302 : 0x8080;
        bytes |= word << (16 * half);
    }
    return bytes;
}

PK_INLINE __m512i byte_table(int line) {
    alignas(64) int table[16];
    for (int nibble = 0; nibble < 16; ++nibble) table[nibble] = bytes_of(nibble, line);
    return _mm512_load_si512(table);
}

// first and second of each lane as bf16, side by side.
PK_INLINE __m512i pair_of(__m512 first, __m512 second) {
    const __m256i low = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(first));
    const __m256i high = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(second));
    return _mm512_or_si512(_mm512_cvtepu16_epi32(low),
                           _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
}

template <class Number>
struct Tiles {
    using Weight = QuantizedSparse24Weight;
    static constexpr bool kRowsFirst = false;

    class Cursor {
      public:
        Cursor(const Problem& p, const Weight& w, int64_t, int64_t) : p_(p), w_(w) {}

        // Inputs [64 step, 64 step + 64) of a row tile.
        PK_INLINE void expand(int64_t index, int64_t step, uint16_t* out) const {
            const sparse24_int::Tile<BF16, Number> tile(p_, w_, index);
            for (int64_t c = step * kStepTiles; c < (step + 1) * kStepTiles; ++c) {
                if (c < tile.chunks)
                    expand_chunk(tile, c, out);
                else
                    for (int i = 0; i < kTileSide; ++i)
                        _mm512_store_si512(out + i * kTileInputs, _mm512_setzero_si512());
                out += kPairElems;
            }
        }

      private:
        PK_INLINE void expand_chunk(const sparse24_int::Tile<BF16, Number>& tile, int64_t c,
                                    uint16_t* out) const {
            const __m512i tables[2] = {byte_table(0), byte_table(1)};
            // vpshufb counts bytes from the start of each 128 bits: four lanes.
            const __m512i lane_bytes =
                _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c));
            const uint8_t* values = tile.values + c * Number::kChunkBytes;
            const __m512i codes = _mm512_loadu_si512(tile.meta + c * kTileRows);
            const Number numbers(values);
            const Vec scale = tile.scale(c);
            sparse24_int::prefetch_chunk<Number>(values);
#pragma GCC unroll 8
            for (int g = 0; g < kChunkGroups; ++g) {
                const __m512i kept = pair_of(fmadd(numbers.kept(g, 0), scale, zero()),
                                             fmadd(numbers.kept(g, 1), scale, zero()));
                const __m512i picks = _mm512_srli_epi32(codes, 4 * g);
                for (int line = 0; line < 2; ++line) {
                    const __m512i bytes = _mm512_permutexvar_epi32(picks, tables[line]);
                    _mm512_store_si512(
                        out + (2 * g + line) * kTileInputs,
                        _mm512_shuffle_epi8(kept, _mm512_or_si512(bytes, lane_bytes)));
                }
            }
        }

        const Problem& p_;
        const Weight& w_;
    };
};

constexpr int64_t kDecodeTokens = 4;

}  // namespace

void sparse24_int8_linear_amx(const Problem& p, const QuantizedSparse24Weight& w) {
    if (p.M <= kDecodeTokens)
        sparse24_int8_linear_avx512(p, w);
    else
        linear_by_tiles<Tiles<sparse24_int::Int8>>(p, w);
}
void sparse24_int4_linear_amx(const Problem& p, const QuantizedSparse24Weight& w) {
    if (p.M <= kDecodeTokens)
        sparse24_int4_linear_avx512(p, w);
    else
        linear_by_tiles<Tiles<sparse24_int::Int4>>(p, w);
}

}  // namespace prunekern
