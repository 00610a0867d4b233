// y[M,N] = x[M,K] W[N,K]^T with W 2:4 sparse along K, bf16, on AMX. The packed weight is that of
// sparse24_avx512bf16.cpp, which also serves the fewest tokens.
//
// amx_linear.h expands it to dense tiles [16 pairs of inputs][16 rows][2]. Lanes are rows there as
// they are here, so that a group of four inputs is two lines of a tile, and a lane of either holds
// none, one or two of the row's kept weights:
//
//   pair     01    02    03    12    13    23
//   line 0   a b   a 0   a 0   0 a   0 a   0 0       inputs 0 and 1
//   line 1   0 0   b 0   0 b   b 0   0 b   a b       inputs 2 and 3
//
// The metadata picks, by vpermd, which bytes vpshufb takes: four shuffles for two lines.
//
// Limit: 32 shuffles for 512 weights, one a cycle: as long as two products of tiles. Measured 9.4
// ns a tile from cache; from memory, 1.125 bytes a weight, 34 ns at 17 GB/s.
#include "amx_linear.h"

namespace prunekern {
namespace {

constexpr int kChunkGroups = 8;  // one metadata word, one tile

// Bytes of a lane's kept pair that make its lane of line `line`; 0x80 makes a zero.
constexpr int bytes_of(int code, int line) {
    constexpr int kFirst[] = {0, 0, 0, 1, 1, 2}, kSecond[] = {1, 2, 3, 2, 3, 3};
    int bytes = 0;
    for (int half = 0; half < 2; ++half) {
        const int input = 2 * line + half;
        const int word = input == kFirst[code] ? 0x0100 : input == kSecond[code] ? 0x0302 : 0x8080;
        bytes |= word << (16 * half);
    }
    return bytes;
}

PK_INLINE __m512i byte_table(int line) {
    const int b[] = {bytes_of(0, line), bytes_of(1, line), bytes_of(2, line),
                     bytes_of(3, line), bytes_of(4, line), bytes_of(5, line)};
    return _mm512_setr_epi32(b[0], b[1], b[2], b[3], b[4], b[5], 0, 0,  //
                             b[0], b[1], b[2], b[3], b[4], b[5], 0, 0);
}

struct Sparse24Tiles {
    using Weight = Sparse24Weight;
    static constexpr bool kRowsFirst = false;

    class Cursor {
      public:
        Cursor(const Problem& p, const Weight& w, int64_t, int64_t)
            : values_(static_cast<const uint32_t*>(w.values)),
              meta_(static_cast<const uint32_t*>(w.meta)), chunks_(ceil_div(p.K, kTileInputs)) {}

        // Inputs [64 step, 64 step + 64) of a row tile.
        PK_INLINE void expand(int64_t tile, int64_t step, uint16_t* out) const {
            for (int64_t c = step * kStepTiles; c < (step + 1) * kStepTiles; ++c) {
                if (c < chunks_)
                    expand_chunk(tile * chunks_ + c, out);
                else
                    for (int i = 0; i < kTileSide; ++i)
                        _mm512_store_si512(out + i * kTileInputs, _mm512_setzero_si512());
                out += kPairElems;
            }
        }

      private:
        PK_INLINE void expand_chunk(int64_t chunk, uint16_t* out) const {
            const __m512i first = byte_table(0), second = byte_table(1);
            // vpshufb counts bytes from the start of each 128 bits: four lanes.
            const __m512i lane_bytes =
                _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c));
            const uint32_t* values = values_ + chunk * kChunkGroups * kTileSide;
            const uint32_t* meta = meta_ + chunk * kTileSide;
            const __m512i codes = _mm512_loadu_si512(meta);
            prefetch(reinterpret_cast<const char*>(meta) + kPrefetchBytes / 8);
#pragma GCC unroll 8
            for (int g = 0; g < kChunkGroups; ++g) {
                const __m512i kept = _mm512_loadu_si512(values + g * kTileSide);
                prefetch(reinterpret_cast<const char*>(values + g * kTileSide) + kPrefetchBytes);
                const __m512i picks = _mm512_srli_epi32(codes, 4 * g);
                const auto line = [&](__m512i table) {
                    const __m512i bytes = _mm512_permutexvar_epi32(picks, table);
                    return _mm512_shuffle_epi8(kept, _mm512_or_si512(bytes, lane_bytes));
                };
                _mm512_store_si512(out + 2 * g * kTileInputs, line(first));
                _mm512_store_si512(out + (2 * g + 1) * kTileInputs, line(second));
            }
        }

        const uint32_t* values_;
        const uint32_t* meta_;
        int64_t chunks_;
    };
};

constexpr int64_t kDecodeTokens = 4;  // measured

}  // namespace

void sparse24_linear_amx(const Problem& p, const Sparse24Weight& w) {
    if (p.M <= kDecodeTokens)
        sparse24_linear_avx512bf16(p, w);
    else
        linear_by_tiles<Sparse24Tiles>(p, w);
}

}  // namespace prunekern
