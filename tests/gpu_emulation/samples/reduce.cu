// Sums of x and counts of its positive elements, one of each a block: shuffles within a warp,
// votes, shared memory between warps.
//
//   x ──grid stride──▶ sum of a lane ──shfl.down──▶ sum of a warp ──shared──▶ sum of the block
//                                      16 8 4 2 1        warp_sum[w]            by warp 0
#include "ptx.cuh"

__device__ float warp_total(float value) {
    for (int offset = 16; offset > 0; offset /= 2)
        value += __shfl_down_sync(kAllLanes, value, offset);
    return value;
}

extern "C" __global__ void reduce(int n, const float* x, float* sums, int* positives) {
    __shared__ float warp_sum[32];
    __shared__ int warp_count[32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    float sum = 0;
    int count = 0;
    // The bound is the block's, not the thread's: the vote needs every lane in every turn.
    for (int first = blockIdx.x * blockDim.x; first < n; first += gridDim.x * blockDim.x) {
        const int i = first + threadIdx.x;
        const float value = i < n ? x[i] : 0.f;
        sum += value;
        count += __popc(__ballot_sync(kAllLanes, value > 0));
    }
    sum = warp_total(sum);
    if (lane == 0) {
        warp_sum[warp] = sum;
        warp_count[warp] = count;
    }
    __syncthreads();
    if (warp > 0) return;
    sum = warp_total(lane < warps ? warp_sum[lane] : 0.f);
    count = __reduce_add_sync(kAllLanes, lane < warps ? warp_count[lane] : 0);
    if (lane == 0) {
        sums[blockIdx.x] = sum;
        positives[blockIdx.x] = count;
    }
}
