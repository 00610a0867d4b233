// The op of CSR on a GPU: what checks arguments and launches the kernel. Schemas: ops.cpp.
#include <torch/csrc/stable/library.h>

#include "cuda/csr_simt.h"
#include "cuda/workspace.h"
#include "ops_cuda.h"

namespace prunekern {
namespace {

constexpr int kFirstCapability = 75;

// The units of a weight whose tensors are as the layout says.
int64_t check_tiles(const char* op, const Tensor& values, const Tensor& col_indices,
                    const Tensor& crow_indices, int64_t N, int64_t K, const Device& device) {
    using namespace csr_simt;
    const ScalarType type = values.scalar_type();
    dtype_of(op, "values", values);
    const int64_t pairs = values.dim() > 0 ? values.size(0) : -1;
    if (pairs > INT32_MAX) fail(op, "pairs of vectors of W", "be fewer than 2^31", pairs);
    if (type == ScalarType::Float)
        check_packed(op, "values", values, device, type, {pairs, 2, 2, kVector / 2}, kAlignment);
    else
        check_packed(op, "values", values, device, type, {pairs, 2, kVector}, kAlignment);
    check_packed(op, "col_indices", col_indices, device, ScalarType::UInt16, {pairs, 2, kVector},
                 kAlignment);
    const int64_t fixed = Tables::of(N, K).fixed();
    const int64_t words = crow_indices.dim() == 1 ? crow_indices.size(0) : -1;
    const int64_t units = (words - fixed) / Tables::kWordsAUnit;
    if (units < 1 || words > INT32_MAX || fixed + units * Tables::kWordsAUnit != words)
        fail(op, "crow_indices",
             "have the shape [" + std::to_string(fixed) +
                 " + 3 units], fewer than 2^31; pack the weight "
                 "for this op and give its out_features and in_features",
             shape_of(crow_indices));
    check_packed(op, "crow_indices", crow_indices, device, ScalarType::Int, {words});
    return units;
}

Tensor csr_linear(const Tensor& x, const Tensor& values, const Tensor& col_indices,
                  const Tensor& crow_indices, const std::optional<Tensor>& bias, int64_t N,
                  int64_t K) {
    const char* op = "csr_linear_simt";
    const Device device = check_weight(op, values, N, K);
    const int64_t units = check_tiles(op, values, col_indices, crow_indices, N, K, device);
    check_linear(op, x, values.scalar_type(), bias, N, K, device);
    const Gpu& facts = gpu(op, device.index());
    if (facts.capability < kFirstCapability)
        fail(op, "this GPU", "have compute capability 7.5 or more",
             std::to_string(facts.capability / 10) + '.' + std::to_string(facts.capability % 10));

    const Current current(device.index());
    auto [y, tokens] = empty_output(x, N, device);
    if (tokens == 0) return y;
    if (tokens > kMaxSize) fail(op, "the rows of x", "be fewer than 2^31 - 1024", tokens);

    const Tensor rows = !x.is_contiguous()                ? torch::stable::contiguous(x)
                        : is_aligned(x, x.element_size()) ? x
                                                          : torch::stable::clone(x);
    CudaProblem problem{rows.const_data_ptr(),
                        y.mutable_data_ptr(),
                        bias ? bias->const_data_ptr() : nullptr,
                        tokens,
                        N,
                        K,
                        dtype_of(op, "x", x),
                        nullptr,
                        facts.sms,
                        current.stream()};
    const int64_t bytes = csr_workspace_bytes(tokens, N, K, units, problem.dtype, facts.sms);
    check_cuda(op, "allocating a workspace",
               get_workspace(device.index(), problem.stream, bytes, &problem.workspace));
    check_cuda(op, "the launch",
               csr_linear_simt(problem, {values.const_data_ptr(), col_indices.const_data_ptr(),
                                         static_cast<const int32_t*>(crow_indices.const_data_ptr()),
                                         units}));
    return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(prunekern, CUDA, m) { m.impl("csr_linear_simt", TORCH_BOX(&csr_linear)); }

}  // namespace prunekern
