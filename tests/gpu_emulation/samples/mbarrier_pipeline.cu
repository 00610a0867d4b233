// Bulk copies into a ring of three buffers: mbarriers say when a buffer is full and when empty.
//
//   warp 0, lane 0   wait empty s │ expect bytes on full s │ bulk copy ──▶ buffer s, full s
//   warps 1 - 3      wait full s  │ read buffer s          │ one arrival a warp on empty s
//
//   phases of a barrier:  use    0 1 2 | 3 4 5 | 6 ...      s = use % 3, parity = use / 3 % 2
//   A waiter for "empty" asks for the phase before: at the first three uses it has ended already.
//
// out[i] = x[i] + x of the element that mirrors i in its tile of 96. n: a multiple of 4.
#include "ptx.cuh"

constexpr int kTile = 96, kStages = 3, kConsumers = 3;

extern "C" __global__ void mbarrier_pipeline(int n, const float* x, float* out) {
    __shared__ __align__(128) float buffer[kStages][kTile];
    __shared__ __align__(8) uint64_t full[kStages], empty[kStages];
    const int tiles = (n + kTile - 1) / kTile;
    if (threadIdx.x == 0) {
        for (int s = 0; s < kStages; ++s) {
            mbarrier_init(shared_address(&full[s]), 1);
            mbarrier_init(shared_address(&empty[s]), kConsumers);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int tile = 0; tile < tiles; ++tile) {
            const int s = tile % kStages, parity = tile / kStages % 2;
            const int bytes = min(kTile, n - tile * kTile) * 4;
            mbarrier_wait(shared_address(&empty[s]), parity ^ 1);
            mbarrier_expect(shared_address(&full[s]), bytes);
            bulk_load(shared_address(buffer[s]), x + tile * kTile, bytes, shared_address(&full[s]));
        }
    } else if (threadIdx.x >= 32) {
        const int i = threadIdx.x - 32, mirror = kTile - 1 - i;
        for (int tile = 0; tile < tiles; ++tile) {
            const int s = tile % kStages, parity = tile / kStages % 2, left = n - tile * kTile;
            mbarrier_wait(shared_address(&full[s]), parity);
            const float value = i < left ? buffer[s][i] : 0.f;
            const float mirrored = mirror < left ? buffer[s][mirror] : 0.f;
            __syncwarp();
            if (i % 32 == 0) mbarrier_arrive(shared_address(&empty[s]));
            if (i < left) out[tile * kTile + i] = value + mirrored;
        }
    }
}
