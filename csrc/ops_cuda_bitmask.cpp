// The ops of the bitmask format on a GPU: what checks arguments and launches kernels. Schemas:
// ops.cpp.
#include <torch/csrc/stable/library.h>

#include "cuda/bitmask_fragments.h"
#include "cuda/workspace.h"
#include "ops_cuda.h"

namespace prunekern {
namespace {

// The number of values is not known here: offsets lie on the device.
BitmaskPanels panels_of(const char* op, const Tensor& values, const Tensor& bitmask,
                        const Tensor& offsets, int64_t N, int64_t K, const Device& device) {
    namespace panel = bitmask_fragments;
    const int64_t R = panel::row_groups(N), C = panel::column_tiles(K);
    const int64_t size = values.dim() == 1 ? values.size(0) : -1;
    check_packed(op, "values", values, device, values.scalar_type(), {size}, kAlignment);
    check_packed(op, "bitmask", bitmask, device, ScalarType::Int,
                 {R, C, panel::kLanes, panel::kTiles}, kAlignment);
    check_packed(op, "offsets", offsets, device, ScalarType::Int, {R * C * panel::kTiles + 1},
                 kAlignment);
    return {values.const_data_ptr(), static_cast<const int32_t*>(bitmask.const_data_ptr()),
            static_cast<const int32_t*>(offsets.const_data_ptr())};
}

void prepare_once(const char* op, int device) {
    static std::array<std::once_flag, kMaxDevices> prepared;
    std::call_once(prepared.at(static_cast<size_t>(device)),
                   [&] { check_cuda(op, "preparing the kernels", bitmask_prepare_sm80()); });
}

Tensor bitmask_linear(const Tensor& x, const Tensor& values, const Tensor& bitmask,
                      const Tensor& offsets, const std::optional<Tensor>& bias, int64_t N,
                      int64_t K) {
    const char* op = "bitmask_linear_sm80";
    const Device device = check_16_bit_weight(op, values, N, K);
    const BitmaskPanels weight = panels_of(op, values, bitmask, offsets, N, K, device);
    check_linear(op, x, values.scalar_type(), bias, N, K, device);
    const Gpu& facts = gpu(op, device.index());
    check_capability(op, facts, 80, INT32_MAX, "8.0 or more");

    const Current current(device.index());
    auto [y, tokens] = empty_output(x, N, device);
    if (tokens == 0) return y;
    if (tokens > kMaxSize) fail(op, "the rows of x", "be fewer than 2^31 - 1024", tokens);
    prepare_once(op, device.index());

    const Tensor rows = aligned_rows(x, K);
    CudaProblem problem = problem_of(op, rows, y, bias, tokens, N, K, facts, current);
    const int64_t bytes = bitmask_workspace_bytes(tokens, N, problem.K, facts.sms);
    check_cuda(op, "allocating a workspace",
               get_workspace(device.index(), problem.stream, bytes, &problem.workspace));
    check_cuda(op, "the launch", bitmask_linear_sm80(problem, weight));
    return y;
}

Tensor bitmask_decompress_op(const Tensor& values, const Tensor& bitmask, const Tensor& offsets,
                             int64_t N, int64_t K) {
    const char* op = "bitmask_decompress_sm80";
    const Device device = check_16_bit_weight(op, values, N, K);
    const BitmaskPanels weight = panels_of(op, values, bitmask, offsets, N, K, device);
    check_capability(op, gpu(op, device.index()), 80, INT32_MAX, "8.0 or more");
    const Current current(device.index());
    const int64_t sizes[] = {N, K};
    Tensor dense = empty(dtype_code(values), sizes, 2, device);
    check_cuda(op, "the launch",
               bitmask_decompress(weight, N, K, dense.mutable_data_ptr(), current.stream()));
    return dense;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(prunekern, CUDA, m) {
    m.impl("bitmask_linear_sm80", TORCH_BOX(&bitmask_linear));
    m.impl("bitmask_decompress_sm80", TORCH_BOX(&bitmask_decompress_op));
}

}  // namespace prunekern
