#include "workspace.h"

#include <algorithm>
#include <mutex>
#include <vector>

namespace prunekern {
namespace {

struct Workspace {
    int device;
    cudaStream_t stream;
    int64_t bytes;
    void* data;
};

// From the runtime and not from torch's allocator: during a capture the latter gives memory that
// belongs to the graph, and zeroing it would become a part of the graph that has not run yet.
cudaError_t allocate_zeros(int64_t bytes, void** data) {
    cudaStream_t stream = nullptr;
    cudaError_t error = cudaMalloc(data, static_cast<size_t>(bytes));
    if (error != cudaSuccess) return error;
    error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    if (error == cudaSuccess) error = cudaMemsetAsync(*data, 0, static_cast<size_t>(bytes), stream);
    if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
    if (stream != nullptr) cudaStreamDestroy(stream);
    if (error != cudaSuccess) cudaFree(*data);
    return error;
}

}  // namespace

cudaError_t get_workspace(int device, cudaStream_t stream, int64_t bytes, void** data) {
    static std::mutex mutex;
    static std::vector<Workspace> workspaces;

    *data = nullptr;
    if (bytes == 0) return cudaSuccess;
    const std::lock_guard lock(mutex);
    auto found = std::find_if(workspaces.begin(), workspaces.end(), [&](const Workspace& w) {
        return w.device == device && w.stream == stream;
    });
    if (found == workspaces.end()) found = workspaces.insert(found, {device, stream, 0, nullptr});
    if (found->bytes < bytes) {
        // Twice as much as before, so that a growing batch does not leave many pieces behind.
        const int64_t wanted = std::max(bytes, 2 * found->bytes);
        void* grown = nullptr;
        cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
        cudaThreadExchangeStreamCaptureMode(&mode);
        const cudaError_t error = allocate_zeros(wanted, &grown);
        cudaThreadExchangeStreamCaptureMode(&mode);
        if (error != cudaSuccess) return error;
        found->bytes = wanted;
        found->data = grown;
    }
    *data = found->data;
    return cudaSuccess;
}

}  // namespace prunekern
