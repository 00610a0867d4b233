// Dense 16-bit weights to the canonical 2:4 format and back.
//
//   dense   ... | a 0 0 b | 0 0 c d | ...    eight columns of a row, 16 bytes: one lane
//   values      ...  a b     c d  ...        four stored values, 8 bytes
//   meta             1100  | 1110 << 4       one byte
//
// A warp goes along one row, 256 columns at a time: lane l takes the l-th eight of them, so that
// each load and store of a warp covers whole sectors.
//
// Limit: memory, 2 + 1.125 bytes a weight, and 1 more with a mask.
#include "../sparse24.h"
#include "launch.h"
#include "row_piece.cuh"
#include "sparse24_convert.h"

namespace prunekern {
namespace {

using namespace sparse24_format;

constexpr int kWarp = 32, kWarps = 4;  // of a block
constexpr int kUnroll = 3;             // loads of a lane in flight; a fourth spills on sm_120

// A group of four 16-bit elements is a 64-bit number, position p in bits 16 p and up.
struct alignas(16) Groups {
    uint64_t group[2];
};
constexpr int kColumns = 8;  // of two groups

__device__ uint32_t element(uint64_t group, uint32_t position) {
    return static_cast<uint32_t>(group >> 16 * position) & 0xffff;
}

// Which row a warp has. Its lanes take pieces by their byte of metadata: lane, lane + 32, ...
struct Row {
    int64_t n = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
    int64_t G, meta_bytes;
    __device__ Row(int64_t K) : G((K + 3) / 4), meta_bytes((G + 1) / 2) {}
};

// +0 where the mask, one byte a column, is false.
__device__ Groups clear_dropped(Groups eight, uint64_t mask) {
#pragma unroll
    for (int i = 0; i < kColumns; ++i)
        if (!(mask >> 8 * i & 0xff)) eight.group[i / 4] &= ~(uint64_t{0xffff} << 16 * (i % 4));
    return eight;
}

// Whom to keep: the non-zeros, of which there must be two at most, or the two largest magnitudes.
enum class Keep { kNonZeros, kLargest };

// The two that rank highest stay. Ranks are distinct: among equals the lower position is ahead.
template <Keep kKeep>
__device__ uint32_t choose(uint64_t group) {
    uint32_t rank[4];
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t bits = element(group, i), magnitude = bits & 0x7fff;
        // A negative zero is ahead of a positive one, which may be dropped without a loss.
        const uint32_t worth = kKeep == Keep::kLargest ? magnitude : magnitude ? 2 : bits ? 1 : 0;
        rank[i] = worth << 2 | (3 - i);
    }
    const uint32_t high = max(rank[0], rank[1]), low = min(rank[0], rank[1]);
    const uint32_t other_high = max(rank[2], rank[3]), other_low = min(rank[2], rank[3]);
    const uint32_t best = 3 - (max(high, other_high) & 3);
    const uint32_t second = 3 - (max(min(high, other_high), max(low, other_low)) & 3);
    return encode(min(best, second), max(best, second));
}

__device__ bool is_broken(uint64_t group) {
    int nonzeros = 0;
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) nonzeros += (element(group, i) & 0x7fff) != 0;
    return nonzeros > 2;
}

__device__ uint32_t kept_pair(uint64_t group, uint32_t nibble) {
    return element(group, first_position(nibble)) | element(group, second_position(nibble)) << 16;
}

__device__ uint64_t expand(uint32_t pair, uint32_t nibble) {
    return uint64_t{pair & 0xffff} << 16 * first_position(nibble) |
           uint64_t{pair >> 16} << 16 * second_position(nibble);
}

template <Keep kKeep, bool kMasked, bool kAligned>
__global__ void __launch_bounds__(kWarp* kWarps)
    sparse24_compress_kernel(const uint16_t* __restrict__ dense, const uint8_t* __restrict__ mask,
                             int64_t N, int64_t K, uint16_t* __restrict__ values,
                             uint8_t* __restrict__ meta, BrokenGroups* __restrict__ broken) {
    const Row row(K);
    const int64_t n = row.n, G = row.G;
    if (n >= N) return;
    unsigned broken_count = 0;
    int64_t first_broken = 0;

#pragma unroll kUnroll
    for (int64_t byte = threadIdx.x % kWarp; byte < row.meta_bytes; byte += kWarp) {
        auto eight = load_piece<kAligned, Groups>(dense + n * K, byte, K);
        if constexpr (kMasked)
            eight = clear_dropped(eight, load_piece<kAligned, uint64_t>(mask + n * K, byte, K));
        if constexpr (kKeep == Keep::kNonZeros) {
#pragma unroll
            for (int i = 0; i < 2; ++i)
                if (is_broken(eight.group[i]) && broken_count++ == 0)
                    first_broken = n * G + 2 * byte + i;  // the lane's groups ascend
        }
        const uint32_t low = choose<kKeep>(eight.group[0]), high = choose<kKeep>(eight.group[1]);
        // Beyond the last group all are +0, of which positions 0 and 1 stay: kEmptyNibble.
        meta[n * row.meta_bytes + byte] = static_cast<uint8_t>(low | high << 4);
        const uint2 pairs{kept_pair(eight.group[0], low), kept_pair(eight.group[1], high)};
        store_piece<kAligned>(values + n * 2 * G, byte, 2 * G, pairs);
    }
    if (broken_count) {
        atomicAdd(&broken->count, broken_count);
        atomicMin(&broken->first, static_cast<long long>(first_broken));
    }
}

template <bool kAligned>
__global__ void __launch_bounds__(kWarp* kWarps)
    sparse24_decompress_kernel(const uint16_t* __restrict__ values,
                               const uint8_t* __restrict__ meta, int64_t N, int64_t K,
                               uint16_t* __restrict__ dense) {
    const Row row(K);
    const int64_t n = row.n, G = row.G;
    if (n >= N) return;

#pragma unroll kUnroll
    for (int64_t byte = threadIdx.x % kWarp; byte < row.meta_bytes; byte += kWarp) {
        const uint32_t nibbles = meta[n * row.meta_bytes + byte];
        const auto pairs = load_piece<kAligned, uint2>(values + n * 2 * G, byte, 2 * G);
        const Groups eight{{expand(pairs.x, nibbles & 0xf), expand(pairs.y, nibbles >> 4)}};
        store_piece<kAligned>(dense + n * K, byte, K, eight);
    }
}

bool are_aligned(int64_t K, const void* dense, const void* mask, const void* values) {
    return K % kColumns == 0 && starts_at_multiple_of(sizeof(Groups), dense) &&
           starts_at_multiple_of(sizeof(uint64_t), mask) &&
           starts_at_multiple_of(sizeof(uint2), values);
}

template <typename Kernel, typename... Arguments>
cudaError_t launch_on_rows(Kernel kernel, int64_t N, cudaStream_t stream, Arguments... arguments) {
    return launch(kernel, {(N + kWarps - 1) / kWarps, kWarp * kWarps}, stream, arguments...);
}

template <Keep kKeep, bool kMasked>
cudaError_t compress(const void* dense, const bool* mask, int64_t N, int64_t K, void* values,
                     uint8_t* meta, BrokenGroups* broken, cudaStream_t stream) {
    const auto kernel = are_aligned(K, dense, mask, values)
                            ? &sparse24_compress_kernel<kKeep, kMasked, true>
                            : &sparse24_compress_kernel<kKeep, kMasked, false>;
    return launch_on_rows(kernel, N, stream, static_cast<const uint16_t*>(dense),
                          reinterpret_cast<const uint8_t*>(mask), N, K,
                          static_cast<uint16_t*>(values), meta, broken);
}

}  // namespace

cudaError_t sparse24_compress(const void* dense, int64_t N, int64_t K, void* values, uint8_t* meta,
                              BrokenGroups* broken, cudaStream_t stream) {
    return compress<Keep::kNonZeros, false>(dense, nullptr, N, K, values, meta, broken, stream);
}

cudaError_t sparse24_compress_masked(const void* dense, const bool* mask, int64_t N, int64_t K,
                                     void* values, uint8_t* meta, BrokenGroups* broken,
                                     cudaStream_t stream) {
    return compress<Keep::kNonZeros, true>(dense, mask, N, K, values, meta, broken, stream);
}

cudaError_t sparse24_compress_largest(const void* dense, int64_t N, int64_t K, void* values,
                                      uint8_t* meta, cudaStream_t stream) {
    return compress<Keep::kLargest, false>(dense, nullptr, N, K, values, meta, nullptr, stream);
}

cudaError_t sparse24_decompress(const void* values, const uint8_t* meta, int64_t N, int64_t K,
                                void* dense, cudaStream_t stream) {
    const auto kernel = are_aligned(K, dense, nullptr, values) ? &sparse24_decompress_kernel<true>
                                                               : &sparse24_decompress_kernel<false>;
    return launch_on_rows(kernel, N, stream, static_cast<const uint16_t*>(values), meta, N, K,
                          static_cast<uint16_t*>(dense));
}

}  // namespace prunekern
