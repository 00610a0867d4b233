// A packed bitmask weight made dense: dense [N, K] from panels (bitmask_fragments.h).
//
// A warp a panel: its values to shared memory, from there expanded as for a product; a lane then
// has 32 neighbouring bytes of a row, which it writes as two 16-byte pieces.
//
// Limit: bytes, of which 2 a weight are written and 1.14 at half density read: 240 clocks of an
// A100's multiprocessor for 1024 weights (H100 222, H200 162). Counted for those: 215 instructions,
// 54 clocks, and 75 wavefronts and shuffles. A lane's two pieces are one sector, which L2 puts
// together.
#include "bitmask_convert.h"
#include "bitmask_expand.cuh"
#include "launch.h"
#include "ptx.cuh"
#include "row_piece.cuh"

namespace prunekern {
namespace {

using namespace bitmask_fragments;

constexpr int kWarps = 4, kThreads = kWarps * kLanes;
constexpr int kSharedBytes = kUnitBytes + kTiles * kSlotBytes;  // of a warp

template <bool kAligned>
__global__ void __launch_bounds__(kThreads)
    bitmask_decompress_kernel(const char* __restrict__ values, const uint4* __restrict__ bitmask,
                              const int32_t* __restrict__ offsets, int64_t N, int64_t K,
                              uint16_t* __restrict__ dense) {
    __shared__ __align__(16) char smem[kWarps * kSharedBytes];
    const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
    const int64_t C = column_tiles(K), panel = int64_t{blockIdx.x} * kWarps + warp;
    if (panel >= row_groups(N) * C) return;
    char* own = smem + warp * kSharedBytes;
#pragma unroll
    for (int i = 0; i < kSharedBytes / 16; i += kLanes)
        if (i + lane < kSharedBytes / 16) reinterpret_cast<uint4*>(own)[i + lane] = {};
    const uint32_t slots = ptx::shared_address(own) + kUnitBytes;
    __syncwarp();  // copies come after
    ptx::unrolled<kTiles>([&](auto tile) {
        const int first = __ldg(offsets + panel * kTiles + tile.value);
        const int units = __ldg(offsets + panel * kTiles + tile.value + 1) - first;
        const char* from = values + (int64_t{first} + lane) * kUnitBytes;
        ptx::unrolled<kTileBytes / kUnitBytes / kLanes>([&](auto i) {
            constexpr int kTo = i.value * kLanes * kUnitBytes;
            ptx::copy_if<tile.value * kSlotBytes + kTo, kTo, i.value * kLanes>(
                slots + lane * kUnitBytes, from, units - lane);
        });
    });
    ptx::commit_copies();
    const uint4 words = bitmask[panel * kLanes + lane];
    Tile tiles[kTiles];
    count({words.x, words.y, words.z, words.w}, tiles);
    ptx::wait_copies<0>();
    __syncwarp();
    const int64_t column = panel % C * kColumns + lane % 4 * kLaneColumns;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
        uint4 a[kSteps];
        expand(tiles[tile], slots + tile * kSlotBytes, a);
        const int64_t row = panel / C * kRows + tile * kTileRows + lane / 4;
        const uint4 pieces[2][2] = {
            {{a[0].x, a[0].z, a[1].x, a[1].z}, {a[2].x, a[2].z, a[3].x, a[3].z}},
            {{a[0].y, a[0].w, a[1].y, a[1].w}, {a[2].y, a[2].w, a[3].y, a[3].w}}};
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int i = 0; i < 2; ++i)
                if (const int64_t n = row + 8 * half; n < N && column + 8 * i < K)
                    store_piece<kAligned>(dense + n * K, column / 8 + i, K, pieces[half][i]);
    }
}

}  // namespace

cudaError_t bitmask_decompress(const BitmaskPanels& weight, int64_t N, int64_t K, void* dense,
                               cudaStream_t stream) {
    const bool aligned = K % 8 == 0 && starts_at_multiple_of(16, dense);
    const auto kernel =
        aligned ? &bitmask_decompress_kernel<true> : &bitmask_decompress_kernel<false>;
    const int64_t blocks = ceil_div(row_groups(N) * column_tiles(K), kWarps);
    return launch(kernel, {blocks, kThreads}, stream, static_cast<const char*>(weight.values),
                  reinterpret_cast<const uint4*>(weight.bitmask), weight.offsets, N, K,
                  static_cast<uint16_t*>(dense));
}

}  // namespace prunekern
