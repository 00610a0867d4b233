// Launching a kernel, and hearing whether that worked: the one place that asks.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace prunekern {

// On a linear grid. More blocks than a grid may have are refused rather than cut to 32 bits.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, cudaStream_t stream,
                   Arguments... arguments) {
    if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
    kernel<<<static_cast<unsigned>(blocks), threads, 0, stream>>>(arguments...);
    return cudaGetLastError();
}

}  // namespace prunekern
