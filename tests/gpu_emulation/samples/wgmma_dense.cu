// C = A X^T by tiles of 64 x 32, a warpgroup each: both operands straight from shared memory.
//
//   A [m, k] ──plain stores──▶ | 64 x 64 halves | ─┐  descriptors: 128-byte rows, swizzled
//   X [n, k]                   | 32 x 64 halves | ─┴─▶ wgmma.m64n32k16, four for 64 columns
//
//   fence.proxy.async, barrier: stores of all threads are seen by wgmma
//   wait_group, barrier:        all warps are done with the tiles before the next are stored
//
//   sum[4 j + 2 h + e] of lane l in warp w: row 16 w + 8 h + l / 4, column 8 j + 2 (l % 4) + e
//
// k: a multiple of 8.
#include "tile.cuh"

constexpr int kRows = 64, kColumns = 32, kDepth = 64, kThreads = 128;

extern "C" __global__ void __launch_bounds__(kThreads)
    wgmma_dense(int m, int n, int k, const __half* a, const __half* x, float* c) {
    __shared__ __align__(1024) unsigned char tile_a[kRows * 128], tile_x[kColumns * 128];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int row = blockIdx.y * kRows, column = blockIdx.x * kColumns;
    float sum[16] = {};
    for (int depth = 0; depth < k; depth += kDepth) {
        store_tile<kRows, kThreads>(tile_a, a, row, depth, m, k);
        store_tile<kColumns, kThreads>(tile_x, x, column, depth, n, k);
        fence_proxy_async();
        __syncthreads();
        wgmma_fence();
        for (int k16 = 0; k16 < kDepth / 16; ++k16)
            wgmma_m64n32k16(sum, descriptor(tile_a) + 2 * k16, descriptor(tile_x) + 2 * k16);
        wgmma_finish();
        __syncthreads();
    }
    for (int i = 0; i < 16; ++i) {
        const int r = row + 16 * warp + i / 2 % 2 * 8 + lane / 4;
        const int col = column + i / 4 * 8 + lane % 4 * 2 + i % 2;
        if (r < m && col < n) c[static_cast<size_t>(r) * n + col] = sum[i];
    }
}
