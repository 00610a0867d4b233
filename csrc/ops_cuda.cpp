// The ops on a GPU: what checks arguments and launches kernels. Schemas: ops.cpp.
//
// Nothing here waits for the device. Launches go to torch's current stream of the weight's device,
// and can be captured into a CUDA graph.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <mutex>

#include "checks.h"
#include "cuda/kernels_cuda.h"
#include "cuda/sparse24_fragments.h"
#include "cuda/workspace.h"
#include "tensors.h"

namespace prunekern {
namespace {

constexpr uintptr_t kAlignment = 16;  // bytes, of a vector load
constexpr int64_t kRowMultiple = 8;   // 16-bit elements in as many bytes

// Kernels count rows and columns in 32 bits, rounded up to their tiles.
constexpr int64_t kMaxSize = INT32_MAX - 1024;

struct Gpu {
    int capability;  // 10 major + minor
    int64_t sms;
};

void check_cuda(const char* op, const char* what, cudaError_t error) {
    if (error != cudaSuccess) fail(op, what, "succeed", cudaGetErrorString(error));
}

const Gpu& gpu(const char* op, int device) {
    constexpr size_t kMaxDevices = 128;  // indices of torch have 8 bits, with a sign
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

struct Sparse24Variant {
    const char* linear_op;
    int first_capability, last_capability;
    const char* capabilities;
    int64_t (*workspace_bytes)(int64_t M, int64_t N, int64_t K, int64_t sms);
    cudaError_t (*launch)(const CudaProblem&, const PanelWeight&);
};

// x as rows that kernels read with 16-byte loads: a copy where it is a view with other strides,
// starts elsewhere, or has rows of another length. Those are padded with zeros up to a multiple of
// 8: a packed weight has the same panels for either length, and zeros there. The copy is the price
// of such a shape, paid by K % 8 != 0 only.
Tensor aligned_rows(const Tensor& x, int64_t K) {
    if (K % kRowMultiple != 0) {
        const int64_t padding[] = {0, ceil_div(K, kRowMultiple) * kRowMultiple - K};
        return torch::stable::contiguous(torch::stable::pad(x, padding));
    }
    if (!x.is_contiguous()) return torch::stable::contiguous(x);
    return is_aligned(x, kAlignment) ? x : torch::stable::clone(x);
}

template <const Sparse24Variant& V>
Tensor sparse24_linear(const Tensor& x, const Tensor& values, const Tensor& meta,
                       const std::optional<Tensor>& bias, int64_t N, int64_t K) {
    namespace panel = sparse24_fragments;
    const char* op = V.linear_op;
    const Device device = values.device();
    if (device.type() != DeviceType::CUDA)
        fail(op, "values", "be on a CUDA device", name_of(device));
    check_sizes(op, N, K);
    if (N > kMaxSize || K > kMaxSize)
        fail(op, "out_features and in_features", "be below 2^31 - 1024", std::max(N, K));
    const DType dtype = dtype_of(op, "values", values);
    if (dtype == DType::kFloat32)
        fail(op, "values", "be bfloat16 or float16", name_of(values.scalar_type()));
    const int64_t R = panel::row_groups(N), C = panel::column_tiles(K);
    check_packed(op, "values", values, device, values.scalar_type(),
                 {R, C, panel::kRowTiles, panel::kSteps, panel::kLanes, 8}, kAlignment);
    check_packed(op, "meta", meta, device, ScalarType::Int, {R, C, panel::kLanes, panel::kRowTiles},
                 kAlignment);
    check_linear(op, x, values.scalar_type(), bias, N, K, device);

    const Gpu& facts = gpu(op, device.index());
    if (facts.capability < V.first_capability || facts.capability > V.last_capability)
        fail(op, "this GPU", std::string("have compute capability ") + V.capabilities,
             std::to_string(facts.capability / 10) + '.' + std::to_string(facts.capability % 10));

    const torch::stable::accelerator::DeviceGuard guard(device.index());
    auto [y, tokens] = empty_output(x, N, device);
    if (tokens == 0) return y;
    if (tokens > kMaxSize) fail(op, "the rows of x", "be fewer than 2^31 - 1024", tokens);
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device.index(), &stream));

    const Tensor rows = aligned_rows(x, K);
    CudaProblem problem{rows.const_data_ptr(),
                        y.mutable_data_ptr(),
                        bias ? bias->const_data_ptr() : nullptr,
                        tokens,
                        N,
                        ceil_div(K, kRowMultiple) * kRowMultiple,
                        dtype,
                        nullptr,
                        facts.sms,
                        static_cast<cudaStream_t>(stream)};
    const int64_t bytes = V.workspace_bytes(tokens, N, problem.K, facts.sms);
    check_cuda(op, "allocating a workspace",
               get_workspace(device.index(), problem.stream, bytes, &problem.workspace));
    check_cuda(op, "the launch",
               V.launch(problem, {values.const_data_ptr(),
                                  static_cast<const int32_t*>(meta.const_data_ptr())}));
    return y;
}

constexpr Sparse24Variant k24_sm80{
    "sparse24_linear_sm80", 80, 999, "8.0 or more", sparse24_sm80_workspace_bytes,
    sparse24_linear_sm80};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(prunekern, CUDA, m) {
    m.impl("sparse24_linear_sm80", TORCH_BOX(&sparse24_linear<k24_sm80>));
}

}  // namespace prunekern
