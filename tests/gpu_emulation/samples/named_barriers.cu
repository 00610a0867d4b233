// One warp loads, three warps compute: they meet at named barriers, a pair for each of two buffers.
//
//   warp 0        fill buffer 0 │ fill buffer 1 │ wait empty 0, fill 0 │ ...
//                 arrive full 0   arrive full 1
//   warps 1 - 3   wait full 0, read, arrive empty 0 │ wait full 1, read, arrive empty 1 │ ...
//
// out[i] = x[i] + x of the element that mirrors i in its tile of 96: read from another lane's
// write.
#include "ptx.cuh"

constexpr int kTile = 96, kThreads = 128, kFull = 1, kEmpty = 3;  // 0 is __syncthreads'

extern "C" __global__ void named_barriers(int n, const float* x, float* out) {
    __shared__ float buffer[2][kTile];
    const int tiles = (n + kTile - 1) / kTile;
    if (threadIdx.x < 32) {
        for (int tile = 0; tile < tiles; ++tile) {
            if (tile >= 2) barrier_sync(kEmpty + tile % 2, kThreads);
            for (int i = threadIdx.x; i < kTile; i += 32) {
                const int at = tile * kTile + i;
                buffer[tile % 2][i] = at < n ? x[at] : 0.f;
            }
            barrier_arrive(kFull + tile % 2, kThreads);
        }
    } else {
        const int i = threadIdx.x - 32;
        for (int tile = 0; tile < tiles; ++tile) {
            barrier_sync(kFull + tile % 2, kThreads);
            const float sum = buffer[tile % 2][i] + buffer[tile % 2][kTile - 1 - i];
            if (tile + 2 < tiles) barrier_arrive(kEmpty + tile % 2, kThreads);
            if (tile * kTile + i < n) out[tile * kTile + i] = sum;
        }
    }
}
