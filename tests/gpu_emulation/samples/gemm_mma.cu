// C = A B by tiles of 64 x 64: copies run two steps ahead in a ring of three stages.
//
//   A [m, k] ──cp.async──▶ ring | A0 B0 | A1 B1 | A2 B2 |        64 x 64 halves each, swizzled
//   B [k, n]                        │ ldmatrix (B: .trans)
//                                   ▼
//   C [m, n] ◀──masked──  warps 2 x 2, 32 x 32 each:   fragments of 16 x 8
//                          | w0 | w1 |                  | 0 1 2 3 |  sum[i][j]: rows 16 i,
//                          | w2 | w3 |                  | 0 1 2 3 |  columns 8 j
//
//   step s:   wait for stage s % 3 │ barrier │ issue step s + 2 into (s + 2) % 3 │ multiply s % 3
//
// One barrier a step is enough: who passes it knows that every warp is done with step s - 1, whose
// stage the copies of step s + 2 overwrite. Halves, row-major; n and k multiples of 8.
#include "tile.cuh"

constexpr int kTile = 64, kChunks = kTile / 8, kStages = 3, kThreads = 128;
constexpr int kTileBytes = kTile * kTile * 2;

extern "C" __global__ void __launch_bounds__(kThreads)
    gemm_mma(int m, int n, int k, const __half* a, const __half* b, float* c) {
    extern __shared__ __align__(128) unsigned char ring[];
    const uint32_t ring_address = shared_address(ring);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int row = blockIdx.y * kTile, column = blockIdx.x * kTile;
    const int warp_row = warp / 2 * 32, warp_column = warp % 2 * 32;
    const int steps = (k + kTile - 1) / kTile;
    auto issue = [&](int step) {
        const uint32_t stage = ring_address + step % kStages * 2 * kTileBytes;
        if (step < steps) {
            copy_tile<kTile, kChunks, kThreads>(stage, a, row, step * kTile, m, k);
            copy_tile<kTile, kChunks, kThreads>(stage + kTileBytes, b, step * kTile, column, k, n);
        }
        cp_async_commit();  // past the end an empty group, so that the wait's count holds
    };

    float sum[2][4][4] = {};
    for (int step = 0; step < kStages - 1; ++step) issue(step);
    for (int step = 0; step < steps; ++step) {
        cp_async_wait<kStages - 2>();
        __syncthreads();
        issue(step + kStages - 1);
        const uint32_t stage = ring_address + step % kStages * 2 * kTileBytes;
        for (int k16 = 0; k16 < kTile / 16; ++k16) {
            uint32_t fragment_a[2][4], fragment_b[2][4];
            for (int i = 0; i < 2; ++i)
                ldmatrix_x4(fragment_a[i], stage + swizzled<kChunks>(warp_row + 16 * i + lane % 16,
                                                                     2 * k16 + lane / 16));
            for (int j = 0; j < 2; ++j)
                ldmatrix_x4_trans(fragment_b[j],
                                  stage + kTileBytes +
                                      swizzled<kChunks>(16 * k16 + lane % 16,
                                                        warp_column / 8 + 2 * j + lane / 16));
            for (int i = 0; i < 2; ++i)
                for (int j = 0; j < 4; ++j)
                    mma_m16n8k16(sum[i][j], fragment_a[i], fragment_b[j / 2] + j % 2 * 2);
        }
    }

    for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 4; ++j)
            for (int half = 0; half < 2; ++half) {
                const int r = row + warp_row + 16 * i + 8 * half + lane / 4;
                const int col = column + warp_column + 8 * j + lane % 4 * 2;
                if (r < m && col < n)
                    *reinterpret_cast<float2*>(c + static_cast<size_t>(r) * n + col) = {
                        sum[i][j][2 * half], sum[i][j][2 * half + 1]};
            }
}
