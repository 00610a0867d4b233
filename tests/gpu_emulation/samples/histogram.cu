// Counts of bytes: each block counts in shared memory, then adds to the total in global memory.
//
//   x ──grid stride──▶ atomicAdd bins[x] (shared, one set a block) ──barrier──▶ atomicAdd total

extern "C" __global__ void histogram(int n, int bins, const unsigned char* x, int* total) {
    extern __shared__ int counts[];
    for (int bin = threadIdx.x; bin < bins; bin += blockDim.x) counts[bin] = 0;
    __syncthreads();
    const int threads = gridDim.x * blockDim.x;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += threads)
        atomicAdd(&counts[x[i]], 1);
    __syncthreads();
    for (int bin = threadIdx.x; bin < bins; bin += blockDim.x) atomicAdd(&total[bin], counts[bin]);
}
