// Lanes that part ways: early return, loops of different length, branches with exchanges of their
// own.
//
//   lanes past n   ──return
//   others         ──steps of the Collatz sequence──┬─ even lanes: swap through shared memory
//                    (each lane its own number)     │   | 0 2 | 4 6 | ...    among themselves
//                                                   └─ odd lanes: the same with 1 3 | 5 7 | ...,
//                                                       and those with many steps turn negative
#include "ptx.cuh"

constexpr unsigned kEvenLanes = 0x55555555u;

extern "C" __global__ void warp_divergence(int n, const int* x, int* out) {
    __shared__ int exchange[1024];
    const int thread = threadIdx.x, i = blockIdx.x * blockDim.x + thread;
    const unsigned live = __ballot_sync(kAllLanes, i < n);
    if (i >= n) return;
    int steps = 0;
    for (int value = x[i]; value != 1; ++steps) value = value % 2 ? 3 * value + 1 : value / 2;
    const int partner = i ^ 2, place = thread ^ 2;
    if (thread % 2 == 0) {
        exchange[thread] = steps;
        __syncwarp(live & kEvenLanes);
        out[i] = partner < n ? exchange[place] : 0;
    } else {
        if (steps > 50)
            exchange[thread] = -steps;
        else
            exchange[thread] = steps;
        __syncwarp(live & ~kEvenLanes);
        out[i] = partner < n ? exchange[place] : 0;
    }
}
