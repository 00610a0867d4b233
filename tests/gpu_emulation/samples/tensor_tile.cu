// out[c][r] = in[r][c] + in[the row that mirrors r in its tile][c], by tiles of 64 x 64 that tensor
// maps name: the copies know the edges, the threads do not.
//
//   in [rows, columns] ──tensor load──▶ | 64 rows    | ──2 x 2 halves──▶ | 64 columns | ──tensor
//    zeros outside      full: bytes     | of columns |   a thread and    | of rows    |   store──▶
//                                       | swizzled   |   turn            | swizzled   |  out,
//                                       clipped
//
//   fence.proxy.async, barrier: the store sees what all threads have written
//   wait_group, barrier:        the store is done with its tile before the next is written
//
// A block goes down its 64 columns. Lanes differ in the word within a chunk both of the row they
// read and of the row they write, and in the parity of the chunk: no bank is met twice.
//
// rows and columns: multiples of 8, for rows of whole 16 bytes.
#include "tile.cuh"

constexpr int kTile = 64, kThreads = 128, kBytes = kTile * kTile * 2;

// Elements c and c + 1 of a tile's row.
__device__ inline __half2& pair(unsigned char* tile, int row, int c) {
    return *reinterpret_cast<__half2*>(tile + swizzled<8>(row, c / 8) + c % 8 * 2);
}

extern "C" __global__ void __launch_bounds__(kThreads)
    tensor_tile(int rows, const __grid_constant__ CUtensorMap in,
                const __grid_constant__ CUtensorMap out) {
    __shared__ __align__(1024) unsigned char loaded[kBytes], turned[kBytes];
    __shared__ __align__(8) uint64_t full;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = blockIdx.x * kTile;
    if (threadIdx.x == 0) {
        mbarrier_init(shared_address(&full), 1);
        fence_mbarrier_init();
    }
    __syncthreads();
    for (int row = 0; row < rows; row += kTile) {
        if (threadIdx.x == 0) {
            mbarrier_expect(shared_address(&full), kBytes);
            tensor_load(shared_address(loaded), &in, column, row, shared_address(&full));
        }
        mbarrier_wait(shared_address(&full), row / kTile % 2);
        for (int turn = 0; turn < 8; ++turn) {
            const int r = 8 * (2 * warp ^ lane / 16) + lane / 4 % 4 * 2;
            const int c = 8 * (turn ^ lane / 16) + lane % 4 * 2;
            const __half2 above = __hadd2(pair(loaded, r, c), pair(loaded, kTile - 1 - r, c));
            const __half2 below = __hadd2(pair(loaded, r + 1, c), pair(loaded, kTile - 2 - r, c));
            pair(turned, c, r) = __lows2half2(above, below);
            pair(turned, c + 1, r) = __highs2half2(above, below);
        }
        fence_proxy_async();
        __syncthreads();
        if (threadIdx.x == 0) {
            tensor_store(&out, row, column, shared_address(turned));
            bulk_commit();
            bulk_wait();
        }
        __syncthreads();
    }
}
