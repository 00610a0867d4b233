// y = a x + y: global memory in vectors of four, a grid-stride loop, a tail one by one.
//
//   x, y   |0123|4567|89AB|....|tail|       threads T = grid x block
//           t=0  t=1  t=2       n % 4       thread t takes vectors t, t + T, t + 2 T, ...

extern "C" __global__ void saxpy(int n, float a, const float* x, float* y) {
    const int thread = blockIdx.x * blockDim.x + threadIdx.x, threads = gridDim.x * blockDim.x;
    const float4* x4 = reinterpret_cast<const float4*>(x);
    float4* y4 = reinterpret_cast<float4*>(y);
    for (int i = thread; i < n / 4; i += threads) {
        const float4 u = x4[i], v = y4[i];
        y4[i] = {a * u.x + v.x, a * u.y + v.y, a * u.z + v.z, a * u.w + v.w};
    }
    const int i = n / 4 * 4 + thread;
    if (i < n) y[i] = a * x[i] + y[i];
}
