// Every op of the package: schemas on one screen, then what checks and launches them on the CPU.
// What does so on a GPU: ops_cuda_<format>.cpp.
// Built against torch's stable ABI, so that one build serves many versions of torch.
//
//   <format>_linear_<variant>   y[..., N] = x[..., K] W[N,K]^T + bias[N], W packed for the variant
//   <format>_pack_<variant>     canonical tensors -> packed tensors; _unpack_ is its inverse
//   <format>_decompress         canonical tensors -> the dense weight
//   <format>_take, _transpose   what training needs besides, see cpu/sparse24_convert.cpp
//
// prunekern/layouts/ draws both. Ops check what costs next to nothing: dtypes, devices, sizes.
// What canonical tensors hold (positions, columns, bits) is prunekern.formats.validate's to check.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <thread>
#include <tuple>

#include "checks.h"
#include "cpu/isa.h"
#include "kernels.h"
#include "tensors.h"

#define LINEAR24(variant)                                                                     \
    m.def("sparse24_linear_" #variant "(Tensor x, Tensor values, Tensor meta, Tensor? bias, " \
          "int out_features, int in_features) -> Tensor")
#define LINEAR24_OF(type, variant)                                                        \
    m.def("sparse24_" #type "_linear_" #variant "(Tensor x, Tensor values, Tensor meta, " \
          "Tensor scales, Tensor? bias, int out_features, int in_features) -> Tensor")
#define LINEAR24_INT(variant)   \
    LINEAR24_OF(int8, variant); \
    LINEAR24_OF(int4, variant)
#define LINEAR_BITMASK(variant)                                                   \
    m.def("bitmask_linear_" #variant "(Tensor x, Tensor values, Tensor bitmask, " \
          "Tensor offsets, Tensor? bias, int out_features, int in_features) -> Tensor")
#define LINEAR_CSR(variant)                                                       \
    m.def("csr_linear_" #variant "(Tensor x, Tensor values, Tensor col_indices, " \
          "Tensor crow_indices, Tensor? bias, int out_features, int in_features) -> Tensor")
#define PACK24(variant)                                                               \
    m.def("sparse24_pack_" #variant "(Tensor values, Tensor meta, int out_features, " \
          "int in_features) -> (Tensor, Tensor)")
#define UNPACK24(variant)                                                               \
    m.def("sparse24_unpack_" #variant "(Tensor values, Tensor meta, int out_features, " \
          "int in_features) -> (Tensor, Tensor)")
#define PACK_BITMASK(variant)                                                           \
    m.def("bitmask_pack_" #variant "(Tensor values, Tensor bitmask, int out_features, " \
          "int in_features) -> (Tensor, Tensor, Tensor)")

STABLE_TORCH_LIBRARY(prunekern, m) {
    m.def("sparse24_decompress(Tensor values, Tensor meta, int out_features, int in_features) "
          "-> Tensor");
    m.def("sparse24_take(Tensor dense, Tensor meta) -> Tensor");
    m.def("sparse24_transpose(Tensor values, Tensor meta, int out_features, int in_features) "
          "-> (Tensor, Tensor)");
    LINEAR24(scalar);
    LINEAR24_INT(scalar);
    LINEAR_BITMASK(scalar);
    LINEAR_CSR(scalar);
#if defined(__x86_64__)
    LINEAR24(avx2);
    LINEAR24(avx512);
    LINEAR24(avx512bf16);
    LINEAR24_INT(avx2);
    LINEAR24_INT(avx512);
    LINEAR_BITMASK(avx2);
    LINEAR_BITMASK(avx512);
    LINEAR_BITMASK(avx512bf16);
    LINEAR_CSR(avx2);
    LINEAR_CSR(avx512);
    PACK24(avx2);
    PACK24(avx512);
    PACK24(avx512bf16);
    PACK_BITMASK(avx2);
    PACK_BITMASK(avx512);
    PACK_BITMASK(avx512bf16);
#endif
#if PRUNEKERN_AMX
    LINEAR24(amx);
    LINEAR24_INT(amx);
    LINEAR_BITMASK(amx);
    PACK24(amx);
    PACK_BITMASK(amx);
#endif
#if PRUNEKERN_CUDA
    LINEAR_CSR(simt);
    LINEAR24(sm80);
    PACK24(sm80);
    UNPACK24(sm80);
    LINEAR_BITMASK(sm80);
    PACK_BITMASK(sm80);
    m.def("bitmask_unpack_sm80(Tensor values, Tensor bitmask, Tensor offsets, int out_features, "
          "int in_features) -> (Tensor, Tensor)");
    m.def("bitmask_decompress_sm80(Tensor values, Tensor bitmask, Tensor offsets, "
          "int out_features, int in_features) -> Tensor");
#endif
#if PRUNEKERN_SM90A
    LINEAR24(sm90a);
    PACK24(sm90a);
    UNPACK24(sm90a);
#endif
}

namespace prunekern {
namespace {

const Device kCpu(DeviceType::CPU);
constexpr int64_t kMinScaleGroup = 32;  // inputs that share a scale, at least
constexpr int64_t kValuesPadding = 64;  // elements that kernels may read past the last value

void torch_parallel_for(int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t),
                        void* ctx) {
#if defined(__SANITIZE_THREAD__)
    // ThreadSanitizer does not see how OpenMP's threads wait for each other; std::thread it does.
    const int64_t half = n > grain ? n / 2 : n;
    std::thread other([&] { body(ctx, 0, half); });
    if (half < n) body(ctx, half, n);
    other.join();
#else
    torch::stable::parallel_for(0, n, grain,
                                [&](int64_t begin, int64_t end) { body(ctx, begin, end); });
#endif
}

void check_isa(const char* op, Isa isa) {
    const auto missing = missing_features(isa);
    if (missing.empty()) return;
    std::string features;
    for (const auto& feature : missing) features += (features.empty() ? "" : ", ") + feature;
    fail(op, "this CPU", "have " + features + "; take another layout, see prunekern.hardware()",
         "a CPU without");
}

// Checks x and bias, calls launch(Problem) on y of shape [..., N], returns y. x has the dtype of
// `floats`, the weight's values or scales.
template <class Launch>
Tensor linear(const char* op, const Tensor& x, const Tensor& floats,
              const std::optional<Tensor>& bias, int64_t N, int64_t K, Launch&& launch) {
    const DType dtype = dtype_of(op, "x", x);
    check_linear(op, x, floats.scalar_type(), bias, N, K, kCpu);
    auto [y, tokens] = empty_output(x, N, kCpu);
    if (tokens == 0) return y;

    const Tensor rows = !x.is_contiguous()                ? torch::stable::contiguous(x)
                        : is_aligned(x, x.element_size()) ? x
                                                          : torch::stable::clone(x);
    launch(Problem{rows.const_data_ptr(), y.mutable_data_ptr(),
                   bias ? bias->const_data_ptr() : nullptr, tokens, N, K, dtype,
                   torch_parallel_for});
    return y;
}

// ------------------------------------------------------------------------------------------ 2:4

struct Sparse24Variant {
    const char* linear_op;
    const char* pack_op;
    Isa isa;
    void (*launch)(const Problem&, const Sparse24Weight&);
    int64_t tile_rows;  // 0: canonical tensors
    bool pair_codes;
};

// values and meta of the variant's layout, as sizes that prunekern/layouts draws.
void check_sparse24(const Sparse24Variant& v, const Tensor& values, const Tensor& meta, int64_t N,
                    int64_t K) {
    const char* op = v.linear_op;
    const int64_t G = ceil_div(K, 4);
    const ScalarType type = values.scalar_type();
    if (v.tile_rows == 0) {
        check_packed(op, "values", values, kCpu, type, {N, 2 * G});
        check_packed(op, "meta", meta, kCpu, ScalarType::Byte, {N, ceil_div(G, 2)});
        return;
    }
    const int64_t T = ceil_div(N, v.tile_rows), C = ceil_div(G, 8);
    if (type == ScalarType::BFloat16)
        check_packed(op, "values", values, kCpu, type, {T, 8 * C, v.tile_rows, 2});
    else
        check_packed(op, "values", values, kCpu, type, {T, 8 * C, 2, v.tile_rows});
    check_packed(op, "meta", meta, kCpu, ScalarType::Int, {T, C, v.tile_rows});
}

template <const Sparse24Variant& V>
Tensor sparse24_linear(const Tensor& x, const Tensor& values, const Tensor& meta,
                       const std::optional<Tensor>& bias, int64_t N, int64_t K) {
    check_isa(V.linear_op, V.isa);
    check_sizes(V.linear_op, N, K);
    check_sparse24(V, values, meta, N, K);
    if (V.pair_codes && values.scalar_type() != ScalarType::BFloat16)
        fail(V.linear_op, "values", "be bfloat16", name_of(values.scalar_type()));
    return linear(V.linear_op, x, values, bias, N, K, [&](const Problem& p) {
        V.launch(p, {values.const_data_ptr(), meta.const_data_ptr()});
    });
}

template <const Sparse24Variant& V>
std::tuple<Tensor, Tensor> sparse24_pack_op(const Tensor& values, const Tensor& meta, int64_t N,
                                            int64_t K) {
    check_sizes(V.pack_op, N, K);
    const DType dtype = dtype_of(V.pack_op, "values", values);
    if (V.pair_codes && dtype != DType::kBFloat16)
        fail(V.pack_op, "values", "be bfloat16", name_of(values.scalar_type()));
    const int64_t G = ceil_div(K, 4), T = ceil_div(N, V.tile_rows), C = ceil_div(G, 8);
    check_packed(V.pack_op, "values", values, kCpu, values.scalar_type(), {N, 2 * G});
    check_packed(V.pack_op, "meta", meta, kCpu, ScalarType::Byte, {N, ceil_div(G, 2)});
    const bool pairs = dtype == DType::kBFloat16;
    const int64_t value_sizes[] = {T, 8 * C, pairs ? V.tile_rows : 2, pairs ? 2 : V.tile_rows};
    const int64_t meta_sizes[] = {T, C, V.tile_rows};
    Tensor packed_values = empty_weight(dtype_code(values), value_sizes, 4, kCpu);
    Tensor packed_meta = empty_weight(aoti_torch_dtype_int32(), meta_sizes, 3, kCpu);
    sparse24_pack({values.const_data_ptr(), static_cast<const uint8_t*>(meta.const_data_ptr()), N,
                   K, dtype, V.tile_rows, V.pair_codes, packed_values.mutable_data_ptr(),
                   static_cast<int32_t*>(packed_meta.mutable_data_ptr()), torch_parallel_for});
    return {packed_values, packed_meta};
}

Sparse24Convert sparse24_convert(const char* op, const Tensor& values, const Tensor& meta,
                                 int64_t N, int64_t K) {
    check_sizes(op, N, K);
    dtype_of(op, "values", values);
    const int64_t G = ceil_div(K, 4);
    check_packed(op, "values", values, kCpu, values.scalar_type(), {N, 2 * G});
    check_packed(op, "meta", meta, kCpu, ScalarType::Byte, {N, ceil_div(G, 2)});
    return {const_cast<void*>(values.const_data_ptr()),
            static_cast<const uint8_t*>(meta.const_data_ptr()),
            N,
            K,
            static_cast<int64_t>(values.element_size()),
            torch_parallel_for};
}

Tensor sparse24_decompress_op(const Tensor& values, const Tensor& meta, int64_t N, int64_t K) {
    Sparse24Convert convert = sparse24_convert("sparse24_decompress", values, meta, N, K);
    const int64_t sizes[] = {N, K};
    Tensor dense = empty(dtype_code(values), sizes, 2, kCpu);
    convert.dense = dense.mutable_data_ptr();
    sparse24_decompress(convert);
    return dense;
}

Tensor sparse24_take_op(const Tensor& dense, const Tensor& meta) {
    const char* op = "sparse24_take";
    if (dense.dim() != 2) fail(op, "dense", "be a matrix", shape_of(dense));
    const int64_t N = dense.size(0), K = dense.size(1);
    check_packed(op, "dense", dense, kCpu, dense.scalar_type(), {N, K});
    const int64_t sizes[] = {N, 2 * ceil_div(K, 4)};
    Tensor values = empty(dtype_code(dense), sizes, 2, kCpu);
    Sparse24Convert convert = sparse24_convert(op, values, meta, N, K);
    convert.dense = const_cast<void*>(dense.const_data_ptr());
    sparse24_take(convert);
    return values;
}

std::tuple<Tensor, Tensor> sparse24_transpose_op(const Tensor& values, const Tensor& meta,
                                                 int64_t N, int64_t K) {
    const char* op = "sparse24_transpose";
    Sparse24Convert convert = sparse24_convert(op, values, meta, N, K);
    const int64_t blocks = ceil_div(N, 4);
    const int64_t value_sizes[] = {K, 2 * blocks}, meta_sizes[] = {K, ceil_div(blocks, 2)};
    Tensor out_values = empty(dtype_code(values), value_sizes, 2, kCpu);
    Tensor out_meta = empty(dtype_code(meta), meta_sizes, 2, kCpu);
    convert.transposed_values = out_values.mutable_data_ptr();
    convert.transposed_meta = static_cast<uint8_t*>(out_meta.mutable_data_ptr());
    if (const int64_t broken = sparse24_transpose(convert))
        fail(op, "every 4 outputs of an input", "keep at most 2 weights",
             std::to_string(broken) + " groups with more; prune with transposable=True");
    return {out_values, out_meta};
}

// ----------------------------------------------------------------------- 2:4 of int8 and int4

struct QuantizedVariant {
    const char* linear_op;
    Isa isa;
    void (*launch)(const Problem&, const QuantizedSparse24Weight&);
    int64_t tile_rows;  // 0: canonical tensors
    bool only_bf16;
    int64_t bits;
};

// The group size of S scales a row: the least power of two from 32 on that needs no more.
int64_t group_size_of(const char* op, const Tensor& scales, int64_t K) {
    const int64_t S = scales.dim() > 1 ? scales.size(1) : 0;
    int64_t group = kMinScaleGroup;
    while (group < K && ceil_div(K, group) > S) group *= 2;
    if (ceil_div(K, group) != S)
        fail(op, "scales",
             "be ceil(in_features / group size) a row, the group size a power of two from 32 on",
             shape_of(scales));
    return group;
}

// values, meta and scales of the variant's layout, as sizes that prunekern/layouts draws.
void check_quantized(const QuantizedVariant& v, const Tensor& values, const Tensor& meta,
                     const Tensor& scales, int64_t N, int64_t K, int64_t S) {
    const char* op = v.linear_op;
    const int64_t G = ceil_div(K, 4), R = v.tile_rows;
    if (v.only_bf16 && scales.scalar_type() != ScalarType::BFloat16)
        fail(op, "scales", "be bfloat16", name_of(scales.scalar_type()));
    if (R == 0) {
        if (v.bits == 8)
            check_packed(op, "values", values, kCpu, ScalarType::Char, {N, 2 * G});
        else
            check_packed(op, "values", values, kCpu, ScalarType::Byte, {N, G});
        check_packed(op, "meta", meta, kCpu, ScalarType::Byte, {N, ceil_div(G, 2)});
        check_packed(op, "scales", scales, kCpu, scales.scalar_type(), {N, S});
        return;
    }
    const int64_t T = ceil_div(N, R), C = ceil_div(G, 8);
    if (v.bits == 8)
        check_packed(op, "values", values, kCpu, ScalarType::Char, {T, 8 * C, 2, R});
    else
        check_packed(op, "values", values, kCpu, ScalarType::Int, {T, C, 2, R});
    check_packed(op, "meta", meta, kCpu, ScalarType::Int, {T, C, R});
    check_packed(op, "scales", scales, kCpu, scales.scalar_type(), {T, S, R});
}

template <const QuantizedVariant& V>
Tensor quantized_linear(const Tensor& x, const Tensor& values, const Tensor& meta,
                        const Tensor& scales, const std::optional<Tensor>& bias, int64_t N,
                        int64_t K) {
    check_isa(V.linear_op, V.isa);
    check_sizes(V.linear_op, N, K);
    const int64_t group_size = group_size_of(V.linear_op, scales, K);
    const int64_t S = ceil_div(K, group_size);
    check_quantized(V, values, meta, scales, N, K, S);
    return linear(V.linear_op, x, scales, bias, N, K, [&](const Problem& p) {
        V.launch(p, {values.const_data_ptr(), meta.const_data_ptr(), scales.const_data_ptr(), S,
                     group_size});
    });
}

// -------------------------------------------------------------------------------------- bitmask

struct BitmaskVariant {
    const char* linear_op;
    const char* pack_op;
    Isa isa;
    void (*launch)(const Problem&, const BitmaskWeight&);
    int64_t tile_rows;  // 1: canonical tensors and row starts
    bool only_bf16;
};

template <const BitmaskVariant& V>
Tensor bitmask_linear(const Tensor& x, const Tensor& values, const Tensor& bitmask,
                      const Tensor& offsets, const std::optional<Tensor>& bias, int64_t N,
                      int64_t K) {
    const char* op = V.linear_op;
    check_isa(op, V.isa);
    check_sizes(op, N, K);
    if (V.only_bf16 && values.scalar_type() != ScalarType::BFloat16)
        fail(op, "values", "be bfloat16", name_of(values.scalar_type()));
    const int64_t T = ceil_div(N, V.tile_rows);
    check_packed(op, "offsets", offsets, kCpu, ScalarType::Long, {T + 1});
    if (V.tile_rows == 1)
        check_packed(op, "bitmask", bitmask, kCpu, ScalarType::Byte, {N, ceil_div(K, 8)});
    else
        check_packed(op, "bitmask", bitmask, kCpu, ScalarType::Long,
                     {T, ceil_div(K, 64), V.tile_rows});
    const auto* starts = static_cast<const int64_t*>(offsets.const_data_ptr());
    check_values(op, values, kCpu, "offsets", starts[T], V.tile_rows == 1 ? 0 : kValuesPadding);
    return linear(op, x, values, bias, N, K, [&](const Problem& p) {
        V.launch(p, {values.const_data_ptr(), bitmask.const_data_ptr(), starts});
    });
}

template <const BitmaskVariant& V>
std::tuple<Tensor, Tensor, Tensor> bitmask_pack_op(const Tensor& values, const Tensor& bitmask,
                                                   int64_t N, int64_t K) {
    check_sizes(V.pack_op, N, K);
    dtype_of(V.pack_op, "values", values);
    if (V.only_bf16 && values.scalar_type() != ScalarType::BFloat16)
        fail(V.pack_op, "values", "be bfloat16", name_of(values.scalar_type()));
    const int64_t T = ceil_div(N, V.tile_rows);
    const int64_t nnz = values.dim() == 1 ? values.size(0) : -1;
    check_packed(V.pack_op, "values", values, kCpu, values.scalar_type(), {nnz});
    check_packed(V.pack_op, "bitmask", bitmask, kCpu, ScalarType::Byte, {N, ceil_div(K, 8)});
    const int64_t value_sizes[] = {nnz + kValuesPadding};
    const int64_t mask_sizes[] = {T, ceil_div(K, 64), V.tile_rows};
    const int64_t offset_sizes[] = {T + 1};
    Tensor packed_values = empty_weight(dtype_code(values), value_sizes, 1, kCpu);
    Tensor packed_mask = empty_weight(aoti_torch_dtype_int64(), mask_sizes, 3, kCpu);
    Tensor offsets = empty(aoti_torch_dtype_int64(), offset_sizes, 1, kCpu);
    const int64_t found = bitmask_pack(
        {values.const_data_ptr(), static_cast<const uint8_t*>(bitmask.const_data_ptr()), N, K, nnz,
         static_cast<int64_t>(values.element_size()), packed_values.mutable_data_ptr(),
         static_cast<uint64_t*>(packed_mask.mutable_data_ptr()),
         static_cast<int64_t*>(offsets.mutable_data_ptr())});
    if (found != nnz)
        fail(V.pack_op, "the bits set in bitmask", "be as many as values = " + std::to_string(nnz),
             found);
    return {packed_values, packed_mask, offsets};
}

// ------------------------------------------------------------------------------------------ CSR

struct CsrVariant {
    const char* linear_op;
    Isa isa;
    void (*launch)(const Problem&, const CsrWeight&);
};

template <const CsrVariant& V>
Tensor csr_linear(const Tensor& x, const Tensor& values, const Tensor& col_indices,
                  const Tensor& crow_indices, const std::optional<Tensor>& bias, int64_t N,
                  int64_t K) {
    const char* op = V.linear_op;
    check_isa(op, V.isa);
    check_sizes(op, N, K);
    check_packed(op, "crow_indices", crow_indices, kCpu, ScalarType::Long, {N + 1});
    const auto* crow = static_cast<const int64_t*>(crow_indices.const_data_ptr());
    check_values(op, values, kCpu, "crow_indices", crow[N], kValuesPadding);
    const bool wide = col_indices.scalar_type() != ScalarType::UInt16;
    check_packed(op, "col_indices", col_indices, kCpu, wide ? ScalarType::Int : ScalarType::UInt16,
                 {crow[N] + kValuesPadding});
    return linear(op, x, values, bias, N, K, [&](const Problem& p) {
        V.launch(p, {values.const_data_ptr(), col_indices.const_data_ptr(), wide, crow});
    });
}

// ------------------------------------------------------------------------------------- variants

#define SPARSE24(variant, isa, tile_rows, pair_codes)                                           \
    constexpr Sparse24Variant k24_##variant {                                                   \
        "sparse24_linear_" #variant, "sparse24_pack_" #variant, isa, sparse24_linear_##variant, \
            tile_rows, pair_codes                                                               \
    }
#define SPARSE24_INT(variant, isa, tile_rows, only_bf16)                           \
    constexpr QuantizedVariant k24Int8_##variant{"sparse24_int8_linear_" #variant, \
                                                 isa,                              \
                                                 sparse24_int8_linear_##variant,   \
                                                 tile_rows,                        \
                                                 only_bf16,                        \
                                                 8};                               \
    constexpr QuantizedVariant k24Int4_##variant{"sparse24_int4_linear_" #variant, \
                                                 isa,                              \
                                                 sparse24_int4_linear_##variant,   \
                                                 tile_rows,                        \
                                                 only_bf16,                        \
                                                 4}
#define BITMASK(variant, isa, tile_rows, only_bf16)                                          \
    constexpr BitmaskVariant kBitmask_##variant {                                            \
        "bitmask_linear_" #variant, "bitmask_pack_" #variant, isa, bitmask_linear_##variant, \
            tile_rows, only_bf16                                                             \
    }
#define CSR(variant, isa) \
    constexpr CsrVariant kCsr_##variant { "csr_linear_" #variant, isa, csr_linear_##variant }

SPARSE24(scalar, Isa::kScalar, 0, false);
SPARSE24_INT(scalar, Isa::kScalar, 0, false);
BITMASK(scalar, Isa::kScalar, 1, false);
CSR(scalar, Isa::kScalar);
#if defined(__x86_64__)
SPARSE24(avx2, Isa::kAvx2, 8, false);
SPARSE24(avx512, Isa::kAvx512, 16, false);
SPARSE24(avx512bf16, Isa::kAvx512Bf16, 16, true);
SPARSE24_INT(avx2, Isa::kAvx2, 8, false);
SPARSE24_INT(avx512, Isa::kAvx512, 16, false);
BITMASK(avx2, Isa::kAvx2, 4, false);
BITMASK(avx512, Isa::kAvx512, 4, false);
BITMASK(avx512bf16, Isa::kAvx512Bf16, 4, true);
CSR(avx2, Isa::kAvx2);
CSR(avx512, Isa::kAvx512);
#endif
#if PRUNEKERN_AMX
SPARSE24(amx, Isa::kAmx, 16, true);
SPARSE24_INT(amx, Isa::kAmx, 16, true);
BITMASK(amx, Isa::kAmx, 4, true);
#endif

STABLE_TORCH_LIBRARY_IMPL(prunekern, CPU, m) {
#define IMPL24(variant) \
    m.impl("sparse24_linear_" #variant, TORCH_BOX(&sparse24_linear<k24_##variant>))
#define IMPL24_INT(variant)                                                                    \
    m.impl("sparse24_int8_linear_" #variant, TORCH_BOX(&quantized_linear<k24Int8_##variant>)); \
    m.impl("sparse24_int4_linear_" #variant, TORCH_BOX(&quantized_linear<k24Int4_##variant>))
#define IMPL_BITMASK(variant) \
    m.impl("bitmask_linear_" #variant, TORCH_BOX(&bitmask_linear<kBitmask_##variant>))
#define IMPL_CSR(variant) m.impl("csr_linear_" #variant, TORCH_BOX(&csr_linear<kCsr_##variant>))
#define IMPL_PACK24(variant) \
    m.impl("sparse24_pack_" #variant, TORCH_BOX(&sparse24_pack_op<k24_##variant>))
#define IMPL_PACK_BITMASK(variant) \
    m.impl("bitmask_pack_" #variant, TORCH_BOX(&bitmask_pack_op<kBitmask_##variant>))

    m.impl("sparse24_decompress", TORCH_BOX(&sparse24_decompress_op));
    m.impl("sparse24_take", TORCH_BOX(&sparse24_take_op));
    m.impl("sparse24_transpose", TORCH_BOX(&sparse24_transpose_op));
    IMPL24(scalar);
    IMPL24_INT(scalar);
    IMPL_BITMASK(scalar);
    IMPL_CSR(scalar);
#if defined(__x86_64__)
    IMPL24(avx2);
    IMPL24(avx512);
    IMPL24(avx512bf16);
    IMPL24_INT(avx2);
    IMPL24_INT(avx512);
    IMPL_BITMASK(avx2);
    IMPL_BITMASK(avx512);
    IMPL_BITMASK(avx512bf16);
    IMPL_CSR(avx2);
    IMPL_CSR(avx512);
    IMPL_PACK24(avx2);
    IMPL_PACK24(avx512);
    IMPL_PACK24(avx512bf16);
    IMPL_PACK_BITMASK(avx2);
    IMPL_PACK_BITMASK(avx512);
    IMPL_PACK_BITMASK(avx512bf16);
#endif
#if PRUNEKERN_AMX
    IMPL24(amx);
    IMPL24_INT(amx);
    IMPL_BITMASK(amx);
    IMPL_PACK24(amx);
    IMPL_PACK_BITMASK(amx);
#endif
}

}  // namespace
}  // namespace prunekern
