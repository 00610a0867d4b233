// What the ops on a GPU share: the device's facts, torch's stream, and x as kernels read it.
//
// Nothing here waits for the device. Launches go to torch's current stream of the weight's device,
// and can be captured into a CUDA graph.
#pragma once
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <mutex>

#include "checks.h"
#include "cuda/kernels_cuda.h"
#include "tensors.h"

namespace prunekern {

constexpr uintptr_t kAlignment = 16;  // bytes, of a vector load
constexpr int64_t kRowMultiple = 8;   // 16-bit elements in as many bytes

// Kernels count rows and columns in 32 bits, rounded up to their tiles.
constexpr int64_t kMaxSize = INT32_MAX - 1024;

constexpr size_t kMaxDevices = 128;  // indices of torch have 8 bits, with a sign

struct Gpu {
    int capability;  // 10 major + minor
    int64_t sms;
};

inline void check_cuda(const char* op, const char* what, cudaError_t error) {
    if (error != cudaSuccess) fail(op, what, "succeed", cudaGetErrorString(error));
}

inline void check_capability(const char* op, const Gpu& gpu, int first, int last,
                             const char* wanted) {
    if (gpu.capability < first || gpu.capability > last)
        fail(op, "this GPU", std::string("have compute capability ") + wanted,
             std::to_string(gpu.capability / 10) + '.' + std::to_string(gpu.capability % 10));
}

inline const Gpu& gpu(const char* op, int device) {
    static std::array<Gpu, kMaxDevices> gpus;
    static std::array<std::once_flag, kMaxDevices> asked;
    const auto i = static_cast<size_t>(device);
    std::call_once(asked.at(i), [&] {
        int major = 0, minor = 0, sms = 0;
        const std::pair<int*, cudaDeviceAttr> wanted[] = {
            {&major, cudaDevAttrComputeCapabilityMajor},
            {&minor, cudaDevAttrComputeCapabilityMinor},
            {&sms, cudaDevAttrMultiProcessorCount}};
        for (const auto& [value, attribute] : wanted)
            check_cuda(op, "asking for the GPU's attributes",
                       cudaDeviceGetAttribute(value, attribute, device));
        gpus[i] = {10 * major + minor, sms};
    });
    return gpus[i];
}

// torch's device and stream for as long as an op runs.
class Current {
  public:
    explicit Current(int device) : guard_(device) {
        void* stream = nullptr;
        STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
        stream_ = static_cast<cudaStream_t>(stream);
    }
    cudaStream_t stream() const { return stream_; }

  private:
    torch::stable::accelerator::DeviceGuard guard_;
    cudaStream_t stream_;
};

// x as rows that kernels read with 16-byte loads: a copy where it is a view with other strides,
// starts elsewhere, or has rows of another length. Those are padded with zeros up to a multiple of
// 8: a packed weight has the same panels for either length, and zeros there. The copy is the price
// of such a shape, paid by K % 8 != 0 only.
inline Tensor aligned_rows(const Tensor& x, int64_t K) {
    if (K % kRowMultiple != 0) {
        const int64_t padding[] = {0, ceil_div(K, kRowMultiple) * kRowMultiple - K};
        return torch::stable::contiguous(torch::stable::pad(x, padding));
    }
    if (!x.is_contiguous()) return torch::stable::contiguous(x);
    return is_aligned(x, kAlignment) ? x : torch::stable::clone(x);
}

// The weight's device, and its sizes.
inline Device check_weight(const char* op, const Tensor& values, int64_t N, int64_t K) {
    const Device device = values.device();
    if (device.type() != DeviceType::CUDA)
        fail(op, "values", "be on a CUDA device", name_of(device));
    check_sizes(op, N, K);
    if (N > kMaxSize || K > kMaxSize)
        fail(op, "out_features and in_features", "be below 2^31 - 1024", std::max(N, K));
    return device;
}

inline Device check_16_bit_weight(const char* op, const Tensor& values, int64_t N, int64_t K) {
    if (dtype_of(op, "values", values) == DType::kFloat32)
        fail(op, "values", "be bfloat16 or float16", name_of(values.scalar_type()));
    if (K > kMaxSize / 2)  // bytes of a row are counted in 32 bits
        fail(op, "in_features", "be below 2^30 - 512", K);
    return check_weight(op, values, N, K);
}

// What kernels are given, but for the workspace; rows: x by aligned_rows.
inline CudaProblem problem_of(const char* op, const Tensor& rows, Tensor& y,
                              const std::optional<Tensor>& bias, int64_t tokens, int64_t N,
                              int64_t K, const Gpu& gpu, const Current& current) {
    return {rows.const_data_ptr(),
            y.mutable_data_ptr(),
            bias ? bias->const_data_ptr() : nullptr,
            tokens,
            N,
            ceil_div(K, kRowMultiple) * kRowMultiple,
            dtype_of(op, "x", rows),
            nullptr,
            gpu.sms,
            current.stream()};
}

}  // namespace prunekern
