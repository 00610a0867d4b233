// The ops of the bitmask format on a GPU: what checks arguments and launches kernels. Schemas:
// ops.cpp.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda/bitmask_convert.h"
#include "cuda/bitmask_fragments.h"
#include "cuda/bitmask_sm80.h"
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

Tensor make_dense(const char* op, const BitmaskPanels& weight, int32_t dtype, int64_t N, int64_t K,
                  const Device& device, const Current& current) {
    const int64_t sizes[] = {N, K};
    Tensor dense = empty(dtype, sizes, 2, device);
    check_cuda(op, "the launch",
               bitmask_decompress(weight, N, K, dense.mutable_data_ptr(), current.stream()));
    return dense;
}

// torch's product, into y. Not through the dispatcher, where autocast would change the dtype and
// autograd, which is above this op, would record it once more.
void multiply_dense(const Tensor& rows, const Tensor& dense, const std::optional<Tensor>& bias,
                    const Tensor& y, int64_t tokens) {
    const Tensor transposed = torch::stable::transpose(dense, 0, 1);
    const Tensor x_rows = torch::stable::view(rows, {tokens, dense.size(1)});
    const Tensor y_rows = torch::stable::view(y, {tokens, dense.size(0)});
    STABLE_TORCH_ERROR_CODE_CHECK(
        bias ? aoti_torch_cuda_addmm_out(y_rows.get(), bias->get(), x_rows.get(), transposed.get(),
                                         1, 1)
             : aoti_torch_cuda_mm_out(y_rows.get(), x_rows.get(), transposed.get()));
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

    const Tensor rows = aligned_rows(x, K);
    CudaProblem problem = problem_of(op, rows, y, bias, tokens, N, K, facts, current);
    if (tokens >= bitmask_dense_tokens(N, K, facts.capability)) {
        // of as many columns as x has now: there W is zero, and all rows start at 16 bytes
        const Tensor dense =
            make_dense(op, weight, dtype_code(values), N, problem.K, device, current);
        multiply_dense(rows, dense, bias, y, tokens);
        return y;
    }
    prepare_once(op, device.index());
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
    return make_dense(op, weight, dtype_code(values), N, K, device, current);
}

// ------------------------------------------------------------------------------ pack and unpack

// The inclusive sum along the first dimension.
Tensor running_sum(const Tensor& counts, int32_t dtype) {
    AtenTensorHandle sums = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_cumsum(counts.get(), 0, &dtype, &sums));
    return Tensor(sums);
}

// The last element of a tensor: waits for the device.
template <typename Element>
int64_t last_of(const char* op, const Tensor& t, const Current& current) {
    Element last = 0;
    const auto* end = static_cast<const Element*>(t.const_data_ptr()) + t.numel();
    cudaError_t error =
        cudaMemcpyAsync(&last, end - 1, sizeof last, cudaMemcpyDeviceToHost, current.stream());
    if (error == cudaSuccess) error = cudaStreamSynchronize(current.stream());
    check_cuda(op, "counting what is kept", error);
    return last;
}

Tensor vector_of(int32_t dtype, int64_t size, const Device& device) {
    return empty(dtype, &size, 1, device);
}

std::tuple<Tensor, Tensor, Tensor> bitmask_pack_op(const Tensor& values, const Tensor& bitmask,
                                                   int64_t N, int64_t K) {
    namespace panel = bitmask_fragments;
    const char* op = "bitmask_pack_sm80";
    const Device device = check_16_bit_weight(op, values, N, K);
    const int64_t nnz = values.dim() == 1 ? values.size(0) : -1;
    check_packed(op, "values", values, device, values.scalar_type(), {nnz});
    check_packed(op, "bitmask", bitmask, device, ScalarType::Byte, {N, ceil_div(K, 8)});
    const int64_t R = panel::row_groups(N), C = panel::column_tiles(K);
    const int64_t tiles = R * C * panel::kTiles;
    if (tiles + nnz / panel::kUnit > INT32_MAX)
        fail(op, "values and a padding for each of 16 x 64 weights", "be fewer than 2^34", nnz);

    const Current current(device.index());
    const int64_t sizes[] = {R, C, panel::kLanes, panel::kTiles};
    Tensor words = empty(aoti_torch_dtype_int32(), sizes, 4, device);
    Tensor units = vector_of(aoti_torch_dtype_int32(), tiles + 1, device);
    Tensor counts = vector_of(aoti_torch_dtype_int32(), N * C, device);
    auto* bits = static_cast<int32_t*>(words.mutable_data_ptr());
    check_cuda(op, "the launch",
               bitmask_pack_words(static_cast<const uint8_t*>(bitmask.const_data_ptr()), N, K, bits,
                                  static_cast<int32_t*>(units.mutable_data_ptr()),
                                  static_cast<int32_t*>(counts.mutable_data_ptr()),
                                  current.stream()));
    const Tensor ends = running_sum(counts, aoti_torch_dtype_int64());
    const Tensor offsets = running_sum(units, aoti_torch_dtype_int32());
    const int64_t found = last_of<int64_t>(op, ends, current);
    if (found != nnz)
        fail(op, "the bits set in bitmask", "be as many as values = " + std::to_string(nnz), found);
    Tensor panel_values = vector_of(dtype_code(values),
                                    last_of<int32_t>(op, offsets, current) * panel::kUnit, device);
    check_cuda(op, "the launch",
               bitmask_pack_values(values.const_data_ptr(), bits,
                                   static_cast<const int32_t*>(offsets.const_data_ptr()),
                                   static_cast<const int64_t*>(ends.const_data_ptr()), N, K,
                                   panel_values.mutable_data_ptr(), current.stream()));
    return {panel_values, words, offsets};
}

std::tuple<Tensor, Tensor> bitmask_unpack_op(const Tensor& panel_values, const Tensor& words,
                                             const Tensor& offsets, int64_t N, int64_t K) {
    const char* op = "bitmask_unpack_sm80";
    const Device device = check_16_bit_weight(op, panel_values, N, K);
    const BitmaskPanels weight = panels_of(op, panel_values, words, offsets, N, K, device);
    const Current current(device.index());
    const int64_t sizes[] = {N, ceil_div(K, 8)};
    Tensor bitmask = empty(aoti_torch_dtype_uint8(), sizes, 2, device);
    Tensor counts =
        vector_of(aoti_torch_dtype_int32(), N * bitmask_fragments::column_tiles(K), device);
    check_cuda(op, "the launch",
               bitmask_unpack_words(
                   weight.bitmask, N, K, static_cast<uint8_t*>(bitmask.mutable_data_ptr()),
                   static_cast<int32_t*>(counts.mutable_data_ptr()), current.stream()));
    const Tensor ends = running_sum(counts, aoti_torch_dtype_int64());
    Tensor values =
        vector_of(dtype_code(panel_values), last_of<int64_t>(op, ends, current), device);
    check_cuda(op, "the launch",
               bitmask_unpack_values(weight.values, weight.bitmask, weight.offsets,
                                     static_cast<const int64_t*>(ends.const_data_ptr()), N, K,
                                     values.mutable_data_ptr(), current.stream()));
    return {values, bitmask};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(prunekern, CUDA, m) {
    m.impl("bitmask_linear_sm80", TORCH_BOX(&bitmask_linear));
    m.impl("bitmask_pack_sm80", TORCH_BOX(&bitmask_pack_op));
    m.impl("bitmask_unpack_sm80", TORCH_BOX(&bitmask_unpack_op));
    m.impl("bitmask_decompress_sm80", TORCH_BOX(&bitmask_decompress_op));
}

}  // namespace prunekern
