// C = W X^T with W 2:4, as it is stored: values and metadata in the canonical order, no reordering.
//
//   W dense      | a 0 0 b | 0 c d 0 | ...    k
//   values       | a b | c d | ...            k / 2 halves, through shared memory
//   metadata     | 3 0 | 2 1 | ...            four bits a group, first | second << 2; 16 a word
//
//   a lane's metadata for 64 columns (lane l, row g = l / 4, t = l % 4):
//     bits 0-15: word t of row g, bits 16-31: word t of row g + 8
//     the first 32 columns take lanes t = 0, 1 (selector 0), the next 32 lanes t = 2, 3 (1)
//
// Tiles of 64 x 64 and warps of 32 x 32 as in gemm_mma.cu; X [n, k] is what mma calls column-major,
// so ldmatrix reads it as it lies. k: multiples of 16.
#include "tile.cuh"

constexpr int kTile = 64, kStages = 3, kThreads = 128;
constexpr int kValueChunks = kTile / 16, kChunks = kTile / 8;
constexpr int kValueBytes = kTile * kTile, kStageBytes = kValueBytes + kTile * kTile * 2;
constexpr uint32_t kFirstTwo = 0x4444;  // a group outside of W must name two positions all the same

extern "C" __global__ void __launch_bounds__(kThreads)
    sparse_mma(int m, int n, int k, const __half* values, const uint16_t* metadata, const __half* x,
               float* c) {
    extern __shared__ __align__(128) unsigned char ring[];
    const uint32_t ring_address = shared_address(ring);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int row = blockIdx.y * kTile, column = blockIdx.x * kTile;
    const int warp_row = warp / 2 * 32, warp_column = warp % 2 * 32;
    const int steps = (k + kTile - 1) / kTile;
    auto issue = [&](int step) {
        const uint32_t stage = ring_address + step % kStages * kStageBytes;
        if (step < steps) {
            copy_tile<kTile, kValueChunks, kThreads>(stage, values, row, step * kTile / 2, m,
                                                     k / 2);
            copy_tile<kTile, kChunks, kThreads>(stage + kValueBytes, x, column, step * kTile, n, k);
        }
        cp_async_commit();
    };
    auto word = [&](int r, int at) -> uint32_t {
        return r < m && at < k / 16 ? metadata[static_cast<size_t>(r) * (k / 16) + at] : kFirstTwo;
    };

    float sum[2][4][4] = {};
    for (int step = 0; step < kStages - 1; ++step) issue(step);
    for (int step = 0; step < steps; ++step) {
        uint32_t kept[2];
        for (int i = 0; i < 2; ++i) {
            const int r = row + warp_row + 16 * i + lane / 4, at = step * kTile / 16 + lane % 4;
            kept[i] = word(r, at) | word(r + 8, at) << 16;
        }
        cp_async_wait<kStages - 2>();
        __syncthreads();
        issue(step + kStages - 1);
        const uint32_t stage = ring_address + step % kStages * kStageBytes;
#pragma unroll
        for (int k32 = 0; k32 < kTile / 32; ++k32) {
            uint32_t fragment_w[2][4], fragment_x[4][4];
            for (int i = 0; i < 2; ++i)
                ldmatrix_x4(fragment_w[i],
                            stage + swizzled<kValueChunks>(warp_row + 16 * i + lane % 16,
                                                           2 * k32 + lane / 16));
            for (int j = 0; j < 4; ++j)
                ldmatrix_x4(fragment_x[j], stage + kValueBytes +
                                               swizzled<kChunks>(warp_column + 8 * j + lane % 8,
                                                                 4 * k32 + lane / 8));
            for (int i = 0; i < 2; ++i)
                for (int j = 0; j < 4; ++j)
                    if (k32 == 0)
                        mma_sp_m16n8k32<0>(sum[i][j], fragment_w[i], fragment_x[j], kept[i]);
                    else
                        mma_sp_m16n8k32<1>(sum[i][j], fragment_w[i], fragment_x[j], kept[i]);
        }
    }

    for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 4; ++j)
            for (int e = 0; e < 4; ++e) {
                const int r = row + warp_row + 16 * i + e / 2 * 8 + lane / 4;
                const int col = column + warp_column + 8 * j + lane % 4 * 2 + e % 2;
                if (r < m && col < n) c[static_cast<size_t>(r) * n + col] = sum[i][j][e];
            }
}
