// The ops of 2:4 on a GPU: what checks arguments and launches kernels. Schemas: ops.cpp.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda/sparse24_convert.h"
#include "cuda/sparse24_fragments.h"
#include "cuda/sparse24_sm80.h"
#include "cuda/workspace.h"
#include "ops_cuda.h"

namespace prunekern {
namespace {

struct Sparse24Variant {
    const char* linear_op;
    const char* pack_op;
    const char* unpack_op;
    int first_capability, last_capability;
    const char* capabilities;
    cudaError_t (*prepare)();  // before the first launch on a device, or null
    cudaError_t (*launch)(const CudaProblem&, const PanelWeight&);
};

template <const Sparse24Variant& V>
void prepare_once(int device) {
    static std::array<std::once_flag, kMaxDevices> prepared;
    if (V.prepare == nullptr) return;
    std::call_once(prepared.at(static_cast<size_t>(device)),
                   [] { check_cuda(V.linear_op, "preparing the kernels", V.prepare()); });
}

void check_panels(const char* op, const Tensor& values, const Tensor& meta, int64_t N, int64_t K,
                  const Device& device) {
    namespace panel = sparse24_fragments;
    const int64_t R = panel::row_groups(N), C = panel::column_tiles(K);
    check_packed(op, "values", values, device, values.scalar_type(),
                 {R, C, panel::kRowTiles, panel::kSteps, panel::kLanes, 8}, kAlignment);
    check_packed(op, "meta", meta, device, ScalarType::Int, {R, C, panel::kLanes, panel::kRowTiles},
                 kAlignment);
}

void check_canonical(const char* op, const Tensor& values, const Tensor& meta, int64_t N, int64_t K,
                     const Device& device) {
    const int64_t G = ceil_div(K, 4);
    check_packed(op, "values", values, device, values.scalar_type(), {N, 2 * G});
    check_packed(op, "meta", meta, device, ScalarType::Byte, {N, ceil_div(G, 2)});
}

// Of a weight that is checked, and of x by check_linear: y, written by launch(problem). x has
// `columns` of 16 bits for the kernels, which may be other than it has here.
template <class Launch>
Tensor product(const char* op, const Tensor& x, const std::optional<Tensor>& bias, int64_t N,
               int64_t K, int64_t columns, const Device& device, const Gpu& facts,
               Launch&& launch) {
    const Current current(device.index());
    auto [y, tokens] = empty_output(x, N, device);
    if (tokens == 0) return y;
    if (tokens > kMaxSize) fail(op, "the rows of x", "be fewer than 2^31 - 1024", tokens);

    const Tensor rows = aligned_rows(x, K);
    CudaProblem problem = problem_of(op, rows, y, bias, tokens, N, K, facts, current);
    const int64_t bytes = sparse24_workspace_bytes(tokens, N, columns, facts.sms);
    check_cuda(op, "allocating a workspace",
               get_workspace(device.index(), problem.stream, bytes, &problem.workspace));
    check_cuda(op, "the launch", launch(problem));
    return y;
}

template <const Sparse24Variant& V>
Tensor sparse24_linear(const Tensor& x, const Tensor& values, const Tensor& meta,
                       const std::optional<Tensor>& bias, int64_t N, int64_t K) {
    const char* op = V.linear_op;
    const Device device = check_16_bit_weight(op, values, N, K);
    check_panels(op, values, meta, N, K, device);
    check_linear(op, x, values.scalar_type(), bias, N, K, device);
    const Gpu& facts = gpu(op, device.index());
    check_capability(op, facts, V.first_capability, V.last_capability, V.capabilities);
    return product(op, x, bias, N, K, K, device, facts, [&](const CudaProblem& problem) {
        prepare_once<V>(device.index());
        return V.launch(
            problem, {values.const_data_ptr(), static_cast<const int32_t*>(meta.const_data_ptr())});
    });
}

// ----------------------------------------------------------------------- 2:4 of int8 and int4

struct QuantizedVariant {
    const char* op;
    int64_t bits;
    bool rounds_x;
    cudaError_t (*launch)(const CudaProblem&, const PanelWeight&);
};

// Panels of K columns, of pairs of numbers where x is rounded as well; returns the scales of a row.
template <const QuantizedVariant& V>
int64_t check_quantized_panels(const Tensor& values, const Tensor& meta, const Tensor& scales,
                               int64_t N, int64_t K, const Device& device) {
    namespace panel = sparse24_fragments;
    const int64_t R = panel::row_groups(N);
    const int64_t C = panel::column_tiles(V.rounds_x ? ceil_div(K, 2) : K);
    const ScalarType type = scales.scalar_type();
    if (V.rounds_x) {
        check_packed(V.op, "values", values, device, ScalarType::Char,
                     {R, C, panel::kRowTiles, panel::kSteps, panel::kLanes, 16}, kAlignment);
        check_packed(V.op, "meta", meta, device, ScalarType::Int,
                     {R, C, panel::kSteps, panel::kLanes, panel::kRowTiles}, kAlignment);
        check_packed(V.op, "scales", scales, device, type, {N});
        return 1;
    }
    if (V.bits == 8)
        check_packed(V.op, "values", values, device, ScalarType::Byte,
                     {R, C, panel::kSteps, 2, panel::kLanes, 16}, kAlignment);
    else
        check_packed(V.op, "values", values, device, ScalarType::Byte,
                     {R, C, panel::kSteps, panel::kLanes, 16}, kAlignment);
    check_packed(V.op, "meta", meta, device, ScalarType::Int,
                 {R, C, panel::kLanes, panel::kRowTiles}, kAlignment);
    const int64_t S = scales.dim() > 1 ? scales.size(1) : 0;
    const int shift = S > 0 ? panel::scale_shift(C, S) : 0;
    check_packed(V.op, "scales", scales, device, type,
                 {R, ceil_div(C * panel::kSteps, int64_t{1} << shift), 8, panel::kRowTiles, 2},
                 kAlignment);
    return S;
}

template <const QuantizedVariant& V>
Tensor quantized_linear(const Tensor& x, const Tensor& values, const Tensor& meta,
                        const Tensor& scales, const std::optional<Tensor>& bias, int64_t N,
                        int64_t K) {
    const Device device = check_weight(V.op, values, N, K);
    const DType dtype = dtype_of(V.op, "scales", scales);
    if (dtype == DType::kFloat32)
        fail(V.op, "scales", "be bfloat16 or float16", name_of(scales.scalar_type()));
    // Below 2^18 the sums of whole numbers fit 32 bits; else bytes of a row are counted in them.
    constexpr int64_t kMostNumbers = 1 << 18;
    if (K > (V.rounds_x ? kMostNumbers : kMaxSize / 2))
        fail(V.op, "in_features", V.rounds_x ? "be at most 2^18" : "be below 2^30 - 512", K);
    const int64_t S = check_quantized_panels<V>(values, meta, scales, N, K, device);
    check_linear(V.op, x, scales.scalar_type(), bias, N, K, device);
    const Gpu& facts = gpu(V.op, device.index());
    check_capability(V.op, facts, 80, INT32_MAX, "8.0 or more");

    const int64_t padded = ceil_div(K, kRowMultiple) * kRowMultiple;
    const int64_t columns = V.rounds_x ? bytes_of_rounded_row(padded) / 2 : padded;
    return product(V.op, x, bias, N, K, columns, device, facts, [&](CudaProblem problem) {
        const PanelWeight weight{values.const_data_ptr(),
                                 static_cast<const int32_t*>(meta.const_data_ptr()),
                                 scales.const_data_ptr(), S};
        if (!V.rounds_x) return V.launch(problem, weight);
        const int64_t size[] = {bytes_of_rounded(problem.M, problem.K)};
        Tensor rounded = empty(aoti_torch_dtype_uint8(), size, 1, device);
        problem.rounded = rounded.mutable_data_ptr();
        return V.launch(problem, weight);
    });
}

// ---------------------------------------------------------------------------------- conversions

template <const Sparse24Variant& V>
std::tuple<Tensor, Tensor> sparse24_pack(const Tensor& values, const Tensor& meta, int64_t N,
                                         int64_t K) {
    namespace panel = sparse24_fragments;
    const Device device = check_16_bit_weight(V.pack_op, values, N, K);
    check_canonical(V.pack_op, values, meta, N, K, device);
    const Current current(device.index());
    const int64_t R = panel::row_groups(N), C = panel::column_tiles(K);
    const int64_t value_sizes[] = {R, C, panel::kRowTiles, panel::kSteps, panel::kLanes, 8};
    const int64_t meta_sizes[] = {R, C, panel::kLanes, panel::kRowTiles};
    Tensor panel_values = empty(dtype_code(values), value_sizes, 6, device);
    Tensor panel_meta = empty(aoti_torch_dtype_int32(), meta_sizes, 4, device);
    check_cuda(V.pack_op, "the launch",
               sparse24_pack_panels(
                   values.const_data_ptr(), static_cast<const uint8_t*>(meta.const_data_ptr()), N,
                   K, panel_values.mutable_data_ptr(),
                   static_cast<int32_t*>(panel_meta.mutable_data_ptr()), current.stream()));
    return {panel_values, panel_meta};
}

template <const Sparse24Variant& V>
std::tuple<Tensor, Tensor> sparse24_unpack(const Tensor& panel_values, const Tensor& panel_meta,
                                           int64_t N, int64_t K) {
    const Device device = check_16_bit_weight(V.unpack_op, panel_values, N, K);
    check_panels(V.unpack_op, panel_values, panel_meta, N, K, device);
    const Current current(device.index());
    const int64_t G = ceil_div(K, 4);
    const int64_t value_sizes[] = {N, 2 * G}, meta_sizes[] = {N, ceil_div(G, 2)};
    Tensor values = empty(dtype_code(panel_values), value_sizes, 2, device);
    Tensor meta = empty(aoti_torch_dtype_uint8(), meta_sizes, 2, device);
    check_cuda(V.unpack_op, "the launch",
               sparse24_unpack_panels(panel_values.const_data_ptr(),
                                      static_cast<const int32_t*>(panel_meta.const_data_ptr()), N,
                                      K, values.mutable_data_ptr(),
                                      static_cast<uint8_t*>(meta.mutable_data_ptr()),
                                      current.stream()));
    return {values, meta};
}

Tensor sparse24_decompress_op(const Tensor& values, const Tensor& meta, int64_t N, int64_t K) {
    const char* op = "sparse24_decompress";
    const Device device = check_16_bit_weight(op, values, N, K);
    check_canonical(op, values, meta, N, K, device);
    const Current current(device.index());
    const int64_t sizes[] = {N, K};
    Tensor dense = empty(dtype_code(values), sizes, 2, device);
    check_cuda(op, "the launch",
               sparse24_decompress(values.const_data_ptr(),
                                   static_cast<const uint8_t*>(meta.const_data_ptr()), N, K,
                                   dense.mutable_data_ptr(), current.stream()));
    return dense;
}

#define SPARSE24(variant, first, last, capabilities, prepare)                                \
    constexpr Sparse24Variant k24_##variant {                                                \
        "sparse24_linear_" #variant, "sparse24_pack_" #variant, "sparse24_unpack_" #variant, \
            first, last, capabilities, prepare, sparse24_linear_##variant                    \
    }
SPARSE24(sm80, 80, INT32_MAX, "8.0 or more", nullptr);
#if PRUNEKERN_SM90A
SPARSE24(sm90a, 90, 90, "9.0", sparse24_prepare_sm90a);
#endif

#define SPARSE24_INT(bits, variant, rounds_x)                     \
    constexpr QuantizedVariant k24Int##bits##_##variant {         \
        "sparse24_int" #bits "_linear_" #variant, bits, rounds_x, \
            sparse24_int##bits##_linear_##variant                 \
    }
SPARSE24_INT(8, sm80, false);
SPARSE24_INT(8, sm80a8, true);
SPARSE24_INT(4, sm80, false);

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(prunekern, CUDA, m) {
#define IMPL24(variant)                                                              \
    m.impl("sparse24_linear_" #variant, TORCH_BOX(&sparse24_linear<k24_##variant>)); \
    m.impl("sparse24_pack_" #variant, TORCH_BOX(&sparse24_pack<k24_##variant>));     \
    m.impl("sparse24_unpack_" #variant, TORCH_BOX(&sparse24_unpack<k24_##variant>))

#define IMPL24_INT(bits, variant) \
    m.impl(k24Int##bits##_##variant.op, TORCH_BOX(&quantized_linear<k24Int##bits##_##variant>))

    IMPL24(sm80);
    IMPL24_INT(8, sm80);
    IMPL24_INT(8, sm80a8);
    IMPL24_INT(4, sm80);
    m.impl("sparse24_decompress", TORCH_BOX(&sparse24_decompress_op));
#if PRUNEKERN_SM90A
    IMPL24(sm90a);
#endif
}

}  // namespace prunekern
