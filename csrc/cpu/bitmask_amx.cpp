// y[M,N] = x[M,K] W[N,K]^T with W as bitmask + kept values, bf16, on AMX. The packed weight is that
// of bitmask_avx512bf16.cpp, which also serves the fewest tokens.
//
// amx_linear.h expands it to dense tiles [16 rows][32 inputs]: a line is one vpexpandw. Four row
// tiles of the packed order are one here, so four streams of values are read side by side.
//
// Limit: 16 vpexpandw for 512 weights, two cycles each and one more for the mask: as long as three
// products of tiles. Measured 13.1 ns a tile from cache; from memory, 2 * density + 1/8 bytes a
// weight, 34 ns at half density and 17 GB/s, 10 ns at a tenth.
#include "amx_linear.h"

namespace prunekern {
namespace {
namespace bitmask {

constexpr int kTileRows = 4;
constexpr int kStreams = kTileSide / kTileRows;

struct Tiles {
    using Weight = BitmaskWeight;
    static constexpr bool kRowsFirst = true;

    class Cursor {
      public:
        Cursor(const Problem& p, const Weight& w, int64_t tile_begin, int64_t tile_end)
            : masks_(static_cast<const uint64_t*>(w.bitmask)), first_(tile_begin * kStreams),
              end_(std::min(tile_end * kStreams, ceil_div(p.N, kTileRows))),
              chunks_(ceil_div(p.K, kStepInputs)),
              all_values_(static_cast<const uint16_t*>(w.values)), offsets_(w.offsets),
              values_(end_ - first_) {
            for (int64_t i = first_; i < end_; ++i) values_[i - first_] = all_values_ + offsets_[i];
        }

        // Inputs [64 step, 64 step + 64) of a row tile, whose steps come in order: where a step's
        // values start is known from those before.
        PK_INLINE void expand(int64_t tile, int64_t step, uint16_t* out) {
            for (int64_t i = tile * kStreams; i < (tile + 1) * kStreams; ++i) {
                const bool is_inside = i < end_;
                // What is read after a pair's streams are those of the next pair.
                const int64_t next = std::min(i + 2 * kStreams, end_);
                const uint16_t* stream_end = all_values_ + offsets_[std::min(i + 1, end_)];
                const int64_t skipped = offsets_[next] - offsets_[std::min(i + 1, end_)];
                const uint64_t* masks = masks_ + (i * chunks_ + step) * kTileRows;
                const uint16_t* values = is_inside ? values_[i - first_] : nullptr;
#pragma GCC unroll 4
                for (int r = 0; r < kTileRows; ++r, out += kTileInputs) {
                    if (!is_inside) {
                        _mm512_store_si512(out, _mm512_setzero_si512());
                        _mm512_store_si512(out + kPairElems, _mm512_setzero_si512());
                        continue;
                    }
                    const auto low = static_cast<uint32_t>(masks[r]);
                    const auto high = static_cast<uint32_t>(masks[r] >> 32);
                    const uint16_t* ahead = values + kPrefetchBytes / 2;
                    prefetch(ahead < stream_end ? ahead : ahead + skipped);
                    _mm512_store_si512(out, expand32(low, values));
                    values += _mm_popcnt_u32(low);
                    _mm512_store_si512(out + kPairElems, expand32(high, values));
                    values += _mm_popcnt_u32(high);
                }
                if (!is_inside) continue;
                constexpr int64_t kAhead = kPrefetchBytes / 4 / (8 * kTileRows);
                prefetch(masks + (step + kAhead < chunks_ ? kAhead
                                                          : kAhead + (2 * kStreams - 1) * chunks_) *
                                     kTileRows);
                values_[i - first_] = values;
            }
        }

      private:
        static PK_INLINE __m512i expand32(__mmask32 bits, const uint16_t* values) {
            return _mm512_maskz_expand_epi16(bits, _mm512_loadu_si512(values));
        }

        const uint64_t* masks_;
        int64_t first_, end_, chunks_;  // in tiles of four rows
        const uint16_t* all_values_;
        const int64_t* offsets_;
        Scratch<const uint16_t*> values_;
    };
};

constexpr int64_t kDecodeTokens = 2;  // measured

}  // namespace bitmask
}  // namespace

void bitmask_linear_amx(const Problem& p, const BitmaskWeight& w) {
    if (p.M <= bitmask::kDecodeTokens)
        bitmask_linear_avx512bf16(p, w);
    else
        linear_by_tiles<bitmask::Tiles>(p, w);
}

}  // namespace prunekern
