// y = A x with k split over blocks; whoever comes last adds the parts, always in the same order.
//
//   A [rows, k]  | split 0 | split 1 | split 2 |      block (b, s): rows 4 b .. 4 b + 3, one a warp
//                    │          │         │
//   parts        | s0 | s1 | s2 |                     written, fenced, then one ticket a block
//                    └────┴────┴──▶ y                 by the block that drew the last ticket
#include "ptx.cuh"

constexpr int kRows = 4;

extern "C" __global__ void split_k(int rows, int k, const float* a, const float* x, float* parts,
                                   unsigned* tickets, float* y) {
    __shared__ bool last;
    const int lane = threadIdx.x % 32, row = blockIdx.x * kRows + threadIdx.x / 32;
    const int splits = gridDim.y, width = (k + splits - 1) / splits;
    const int begin = blockIdx.y * width, end = min(begin + width, k);
    float sum = 0;
    if (row < rows)
        for (int i = begin + lane; i < end; i += 32)
            sum += a[static_cast<size_t>(row) * k + i] * x[i];
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(kAllLanes, sum, offset);
    if (lane == 0 && row < rows) parts[blockIdx.y * rows + row] = sum;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(&tickets[blockIdx.x], 1) == splits - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    if (lane == 0 && row < rows) {
        float total = 0;
        for (int s = 0; s < splits; ++s) total += __ldcg(&parts[s * rows + row]);
        y[row] = total;
    }
}
