// C = W X^T with W 2:4 by tiles of 64 x 32: values and X from shared memory, metadata from
// registers.
//
//   128 columns of W:  values   | 64 x 64 halves |            one row of 128 bytes
//                      X        | 32 x 64 | 32 x 64 |         two tiles
//
//   wgmma.m64n32k32     0     1     2     3
//   values, 16 bytes   +0    +2    +4    +6
//   X, tile, 16 bytes  0 +0  0 +4  1 +0  1 +4
//   metadata           kept[0]     kept[1]      a lane's word for 64 columns, as in sparse_mma.cu
//   selector            0     1     0     1
//
// Otherwise as wgmma_dense.cu. k: a multiple of 16.
#include "tile.cuh"

constexpr int kRows = 64, kColumns = 32, kDepth = 128, kThreads = 128;
constexpr uint32_t kFirstTwo = 0x4444;  // a group outside of W must name two positions all the same

extern "C" __global__ void __launch_bounds__(kThreads)
    wgmma_sparse(int m, int n, int k, const __half* values, const uint16_t* metadata,
                 const __half* x, float* c) {
    __shared__ __align__(1024) unsigned char tile_w[kRows * 128], tile_x[2][kColumns * 128];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int row = blockIdx.y * kRows, column = blockIdx.x * kColumns;
    auto word = [&](int r, int at) -> uint32_t {
        return r < m && at < k / 16 ? metadata[static_cast<size_t>(r) * (k / 16) + at] : kFirstTwo;
    };
    float sum[16] = {};
    for (int depth = 0; depth < k; depth += kDepth) {
        store_tile<kRows, kThreads>(tile_w, values, row, depth / 2, m, k / 2);
        uint32_t kept[2];
        for (int half = 0; half < 2; ++half) {
            store_tile<kColumns, kThreads>(tile_x[half], x, column, depth + 64 * half, n, k);
            const int r = row + 16 * warp + lane / 4, at = depth / 16 + 4 * half + lane % 4;
            kept[half] = word(r, at) | word(r + 8, at) << 16;
        }
        fence_proxy_async();
        __syncthreads();
        wgmma_fence();
        for (int half = 0; half < 2; ++half) {
            const uint64_t w = descriptor(tile_w) + 4 * half, xs = descriptor(tile_x[half]);
            wgmma_sp_m64n32k32<0>(sum, w, xs, kept[half]);
            wgmma_sp_m64n32k32<1>(sum, w + 2, xs + 4, kept[half]);
        }
        wgmma_finish();
        __syncthreads();
    }
    for (int i = 0; i < 16; ++i) {
        const int r = row + 16 * warp + i / 2 % 2 * 8 + lane / 4;
        const int col = column + i / 4 * 8 + lane % 4 * 2 + i % 2;
        if (r < m && col < n) c[static_cast<size_t>(r) * n + col] = sum[i];
    }
}
