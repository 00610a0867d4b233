// The types that kernels compute on, to and from the float that they sum in.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace prunekern {

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

template <class Element>
__device__ __forceinline__ Element from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) {
    return v;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float v) {
    return __float2half_rn(v);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float v) {
    return __float2bfloat16_rn(v);
}

// Two of them in a word, the first one low.
template <class Element>
__device__ __forceinline__ uint32_t pack(float low, float high) {
    const Element pair[2] = {from_float<Element>(low), from_float<Element>(high)};
    return *reinterpret_cast<const uint32_t*>(pair);
}

}  // namespace prunekern
