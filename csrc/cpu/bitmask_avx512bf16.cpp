// y[M,N] = x[M,K] W[N,K]^T with W as bitmask + kept values, bf16, on AVX512-BF16 and VBMI2.
//
// Few tokens: bitmask_decode.h with 32 inputs a vector: vpexpandw spreads the kept values,
// vdpbf16ps multiplies. Many tokens: "load sparse, compute dense". The rows of a tile are expanded
// to a small dense buffer in L1, and a dense kernel runs on it with tokens in lanes:
//
//     dense[row][pair]     4 rows of one to eight chunks, bf16               1 to 4 KB, in L1
//     panel[pair][token]   x as pairs (bf16_pairs.h), T vectors of tokens   24 KB at most
//     acc[4 rows][T]       += broadcast(dense[row][pair]) . panel[pair]
//
// Limit, many tokens: dense arithmetic, one vdpbf16ps for 32 multiplications, of which only a share
// of `density` is needed; the expansion (2 cycles for 32 weights) is shared by 16 T tokens.
#include <algorithm>

#include "bf16_pairs.h"
#include "bitmask_decode.h"

namespace prunekern {
namespace {
namespace bitmask {

PK_INLINE __m512i expand32(__mmask32 bits, const uint16_t* values) {
    return _mm512_maskz_expand_epi16(bits, _mm512_loadu_si512(values));
}

struct PairLanes {
    using Elem = uint16_t;
    using X = uint16_t;
    using Weights = __m512i;
    using Bits = uint32_t;
    static constexpr int kInputs = 32;
    static constexpr int kMaxTokens = 6;
    static constexpr int kMaxSums = 24;

    static PK_INLINE __m512i expand(Bits bits, const uint16_t* values) {
        return expand32(bits, values);
    }
    static PK_INLINE __m512i load(const uint16_t* x) { return _mm512_loadu_si512(x); }
    static PK_INLINE Vec multiply_add(__m512i w, __m512i x, Vec acc) {
        return dot_pairs(acc, w, x);
    }
};

constexpr int kVecs = 6;  // 4 rows x 6 vectors of sums, of 32 registers
// Chunks expanded at a time: a panel of 16 KB for 16 tokens, of at most 24 KB for 96.
template <int T>
constexpr int kBlockChunks = T <= 2 ? 8 / T : 2;
template <int T>
constexpr int kBlockPairs = kBlockChunks<T> * kChunkInputs / 2;
constexpr int64_t kDecodeTokens = 12;  // measured

// sums[4][T vectors] += 4 dense rows of up to kBlockPairs pairs times the panel. Few vectors leave
// too few sums to hide the latency of a dot: the pairs are then split over kWays.
template <int T>
PK_INLINE void add_tile(const uint32_t* dense, const uint32_t* panel, int pairs, float* sums) {
    constexpr int kWays = T == 1 ? 4 : T == 2 ? 2 : 1;
    static_assert(kChunkInputs / 2 % kWays == 0);
    Vec acc[kWays][kTileRows][T];
    for (auto& way : acc)
        for (auto& row : way)
            for (auto& sum : row) sum = zero();
    for (int i = 0; i < pairs; i += kWays) {
#pragma GCC unroll 4
        for (int way = 0; way < kWays; ++way) {
            __m512i weights[kTileRows];
#pragma GCC unroll 4
            for (int r = 0; r < kTileRows; ++r)
                weights[r] = broadcast_word(dense[r * kBlockPairs<T> + i + way]);
#pragma GCC unroll 6
            for (int t = 0; t < T; ++t) {
                const __m512i inputs = load_words(panel + ((i + way) * T + t) * kLanes);
#pragma GCC unroll 4
                for (int r = 0; r < kTileRows; ++r)
                    acc[way][r][t] = dot_pairs(acc[way][r][t], weights[r], inputs);
            }
        }
    }
    for (int r = 0; r < kTileRows; ++r)
        for (int t = 0; t < T; ++t) {
            for (int way = 1; way < kWays; ++way) acc[0][r][t] = add(acc[0][r][t], acc[way][r][t]);
            float* sum = sums + (r * T + t) * kLanes;
            store(sum, add(load(sum), acc[0][r][t]));
        }
}

template <int T>
void prefill_rows(const Problem& p, const BitmaskWeight& w, const uint32_t* panel,
                  int64_t tile_begin, int64_t tile_end, int64_t m0, int64_t tokens) {
    const int64_t chunks = ceil_div(p.K, kChunkInputs);
    constexpr int64_t kWidth = T * kLanes;
    constexpr int64_t kBlockTiles = kRowBlock / kTileRows;
    Scratch<float> sums(kRowBlock * kWidth);
    alignas(64) uint32_t dense[kTileRows * kBlockPairs<T>];
    const uint16_t* values[kBlockTiles];

    for (int64_t block = tile_begin; block < tile_end; block += kBlockTiles) {
        const int64_t tiles = std::min(kBlockTiles, tile_end - block);
        for (int64_t i = 0; i < tiles; ++i)
            values[i] = static_cast<const uint16_t*>(w.values) + w.offsets[block + i];
        std::fill_n(sums.get(), tiles * kTileRows * kWidth, 0.0F);
        for (int64_t c = 0; c < chunks; c += kBlockChunks<T>) {
            const int64_t some = std::min<int64_t>(kBlockChunks<T>, chunks - c);
            for (int64_t i = 0; i < tiles; ++i) {
                const auto* masks = static_cast<const uint64_t*>(w.bitmask) +
                                    ((block + i) * chunks + c) * kTileRows;
                for (int64_t j = 0; j < some * kTileRows; ++j) {
                    uint32_t* out = dense + j % kTileRows * kBlockPairs<T> + j / kTileRows * 32;
                    for (int half = 0; half < 2; ++half) {
                        const auto bits = static_cast<uint32_t>(masks[j] >> (32 * half));
                        store_words(out + 16 * half, expand32(bits, values[i]));
                        values[i] += popcount(bits);
                    }
                }
                prefetch_next(values[i], 256 * some);  // as the next block, at half density
                prefetch_next(masks + some * kTileRows, some * kTileRows * 8);
                add_tile<T>(dense, panel + c * (kChunkInputs / 2) * kWidth,
                            static_cast<int>(some) * (kChunkInputs / 2),
                            sums.get() + i * kTileRows * kWidth);
            }
        }
        const int64_t n0 = block * kTileRows;
        write_sums<BF16>(p, sums.get(), kWidth, n0, std::min<int64_t>(tiles * kTileRows, p.N - n0),
                         m0, tokens);
    }
}

}  // namespace bitmask
}  // namespace

void bitmask_linear_avx512bf16(const Problem& p, const BitmaskWeight& w) {
    using namespace bitmask;
    const int64_t padded_K = round_up(p.K, kChunkInputs);
    if (p.M > kDecodeTokens) {
        for_each_pair_panel<kVecs>(
            p, padded_K, kTileRows,
            [&](auto t, const uint32_t* panel, int64_t begin, int64_t end, int64_t m0,
                int64_t tokens) { prefill_rows<t()>(p, w, panel, begin, end, m0, tokens); });
        return;
    }
    const int64_t stride = token_stride<uint16_t>(padded_K);
    Scratch<uint16_t> x(p.M * stride);
    pad_tokens(p, x.get(), stride);
    decode<PairLanes, BF16>(p, w, x.get(), stride);
}

}  // namespace prunekern
