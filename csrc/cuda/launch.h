// Launching a kernel, and hearing whether that worked: the one place that asks.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace prunekern {

struct Grid {
    int64_t blocks;
    int threads;           // of a block
    int shared_bytes = 0;  // of a block, beside those that the kernel declares
};

// More blocks than a grid may have are refused rather than cut to 32 bits.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), Grid grid, cudaStream_t stream,
                   Arguments... arguments) {
    if (grid.blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
    kernel<<<static_cast<unsigned>(grid.blocks), grid.threads, grid.shared_bytes, stream>>>(
        arguments...);
    return cudaGetLastError();
}

}  // namespace prunekern
