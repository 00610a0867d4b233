// The sm80a8 variant of the 2:4 product: values of 8 bits, and x rounded to 8 bits token by token.
//
//   x [M, K]  ──▶  whole numbers int8 [M, K rounded up to 16], scales float [M]: largest / 127
//   y[m, n] = sum of products of whole numbers, exact in 32 bits, * scale[m] * W's scale[n] + bias
//
// To the product a pair of numbers is a column of 16 bits: the kernels are those of 16-bit values,
// with mma.sp m16n8k64 in place of m16n8k32, which takes as long: half as many for the same weight.
//
// Limit: few tokens: bytes of W, 0.625 a weight. Many: twice the rate of 16 bits; the data path to
// registers carries what it carried for each mma.sp (sparse24_prefill_sm80.cuh).
#include "launch.h"
#include "sparse24_product_sm80.cuh"

namespace prunekern {
namespace {

constexpr float kMost = 127, kLeast = 0x1p-100f;               // below it a row counts as zeros
constexpr int kThreads = 256, kWarpLanes = 32, kElements = 8;  // of a 16-byte piece of x

// The largest magnitude that threads have, by its bits: NaN is above infinity and stays.
__device__ int largest_of_block(int magnitude) {
    __shared__ int of_warp[kThreads / kWarpLanes];
    magnitude = __reduce_max_sync(0xffffffff, magnitude);
    if (threadIdx.x % kWarpLanes == 0) of_warp[threadIdx.x / kWarpLanes] = magnitude;
    __syncthreads();
    for (int other : of_warp) magnitude = max(magnitude, other);
    return magnitude;
}

// A block rounds one token. K is a multiple of 8.
template <class Element>
__global__ void __launch_bounds__(kThreads)
    sparse24_quantize_sm80a8_kernel(const Element* __restrict__ x, int K, int64_t padded,
                                    int8_t* __restrict__ numbers, float* __restrict__ scales) {
    const auto* row = reinterpret_cast<const uint4*>(x + int64_t{blockIdx.x} * K);
    auto* out = reinterpret_cast<uint2*>(numbers + blockIdx.x * padded);
    const int pieces = K / kElements, padded_pieces = static_cast<int>(padded / kElements);
    int magnitude = 0;
    for (int i = threadIdx.x; i < pieces; i += kThreads) {
        const uint4 piece = row[i];
        const auto* elements = reinterpret_cast<const Element*>(&piece);
#pragma unroll
        for (int j = 0; j < kElements; ++j)
            magnitude = max(magnitude, __float_as_int(fabsf(to_float(elements[j]))));
    }
    float largest = __int_as_float(largest_of_block(magnitude));
    if (largest < kLeast) largest = kLeast;
    const float inverse = kMost / largest;
    for (int i = threadIdx.x; i < padded_pieces; i += kThreads) {
        const uint4 piece = i < pieces ? row[i] : uint4{};
        const auto* elements = reinterpret_cast<const Element*>(&piece);
        uint2 packed;
        auto* bytes = reinterpret_cast<int8_t*>(&packed);
#pragma unroll
        for (int j = 0; j < kElements; ++j)
            bytes[j] = static_cast<int8_t>(__float2int_rn(to_float(elements[j]) * inverse));
        out[i] = packed;
    }
    if (threadIdx.x == 0) scales[blockIdx.x] = largest / kMost;
}

template <class Element>
cudaError_t linear(const CudaProblem& problem, const PanelWeight& weight) {
    const int64_t padded = bytes_of_rounded_row(problem.K);
    auto* numbers = static_cast<int8_t*>(problem.rounded);
    auto* scales = reinterpret_cast<float*>(numbers + problem.M * padded);
    const cudaError_t error =
        launch(sparse24_quantize_sm80a8_kernel<Element>, {problem.M, kThreads}, problem.stream,
               static_cast<const Element*>(problem.x), static_cast<int>(problem.K), padded, numbers,
               scales);
    if (error != cudaSuccess) return error;
    CudaProblem bytes = problem;
    bytes.x = numbers, bytes.token_scales = scales, bytes.K = padded / 2;
    return sparse24_product_sm80<ByteStep<Element>>(bytes, weight);
}

}  // namespace

cudaError_t sparse24_int8_linear_sm80a8(const CudaProblem& problem, const PanelWeight& weight) {
    return problem.dtype == DType::kFloat16 ? linear<__half>(problem, weight)
                                            : linear<__nv_bfloat16>(problem, weight);
}

}  // namespace prunekern
