// CUTLASS's own SM80 GEMMs behind a C interface: dense (16-bit, fp32 accumulation) and 2:4 sparse with the
// metadata made by CUTLASS's host_reorder. Nothing of the kernels is ours: they judge the emulator.
// Row-major A [M, K], column-major B [K, N] (each column contiguous), row-major D [M, N] in float32.
#include <cstdint>
#include <cutlass/gemm/device/gemm.h>
#include <cutlass/gemm/device/gemm_sparse.h>
#include <cutlass/util/host_reorder.h>
#include <cutlass/util/host_tensor.h>
#include <cutlass/util/host_uncompress.h>

using cutlass::arch::OpClassTensorOp;
using cutlass::arch::Sm80;
using cutlass::gemm::GemmShape;
using RowMajor = cutlass::layout::RowMajor;
using ColumnMajor = cutlass::layout::ColumnMajor;
using Swizzle = cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<>;

template <typename Element, int kAlign>
int dense(int m, int n, int k, const void* a, const void* b, float* d) {
    using Epilogue = cutlass::epilogue::thread::LinearCombination<float, 1, float, float>;
    using Gemm =
        cutlass::gemm::device::Gemm<Element, RowMajor, Element, ColumnMajor, float, RowMajor, float, OpClassTensorOp, Sm80,
                                    GemmShape<128, 128, 32>, GemmShape<64, 64, 32>, GemmShape<16, 8, 16>, Epilogue, Swizzle,
                                    3, kAlign, kAlign>;
    typename Gemm::Arguments arguments({m, n, k}, {static_cast<const Element*>(a), k}, {static_cast<const Element*>(b), k},
                                       {d, n}, {d, n}, {1.0f, 0.0f});
    Gemm gemm;
    return static_cast<int>(gemm(arguments));
}

template <typename Element>
using Sparse = cutlass::gemm::device::SparseGemm<
    Element, RowMajor, Element, ColumnMajor, float, RowMajor, float, OpClassTensorOp, Sm80, GemmShape<128, 128, 64>,
    GemmShape<64, 64, 64>, GemmShape<16, 8, 32>, cutlass::epilogue::thread::LinearCombination<float, 1, float, float>, Swizzle, 3>;

// values [M, K / 2]; metadata as reorder() makes it of the canonical metadata: K / 16 words of 16 bits a row, four 4-bit groups each, low first.
template <typename Element>
int sparse(int m, int n, int k, const void* values, const void* reordered, const void* b, float* d) {
    using Gemm = Sparse<Element>;
    using LayoutE = typename Gemm::LayoutE;
    using ElementE = typename Gemm::ElementE;
    typename Gemm::Arguments arguments({m, n, k}, {static_cast<const Element*>(values), k / 2},
                                       {static_cast<const Element*>(b), k}, {d, n}, {d, n},
                                       {const_cast<ElementE*>(static_cast<const ElementE*>(reordered)), LayoutE::packed({m, k / 16})}, {1.0f, 0.0f});
    Gemm gemm;
    return static_cast<int>(gemm(arguments));
}

int reorder(int m, int n, int k, const uint16_t* metadata, uint16_t* out) {
    using Gemm = Sparse<cutlass::half_t>;
    static_assert(sizeof(typename Gemm::ElementE) == 2);
    cutlass::HostTensor<uint16_t, RowMajor> plain({m, k / 16}, false);
    cutlass::HostTensor<uint16_t, typename Gemm::LayoutE> reordered({m, k / 16}, false);
    std::copy(metadata, metadata + static_cast<size_t>(m) * (k / 16), plain.host_data());
    cutlass::reorder_meta(reordered.host_ref(), plain.host_ref(), {m, n, k / 16});
    std::copy(reordered.host_data(), reordered.host_data() + reordered.capacity(), out);
    return static_cast<int>(reordered.capacity());
}

// CUTLASS's own expansion, so that the canonical metadata is read by somebody else's code too.
template <typename Element>
int uncompress(int m, int k, const void* values, const uint16_t* metadata, void* dense) {
    cutlass::HostTensor<Element, RowMajor> out({m, k}, false), compressed({m, k / 2}, false);
    cutlass::HostTensor<uint16_t, RowMajor> plain({m, k / 16}, false);
    auto source = static_cast<const Element*>(values);
    std::copy(source, source + static_cast<size_t>(m) * (k / 2), compressed.host_data());
    std::copy(metadata, metadata + static_cast<size_t>(m) * (k / 16), plain.host_data());
    cutlass::uncompress(out.host_ref(), compressed.host_ref(), plain.host_ref(), m, k);
    std::copy(out.host_data(), out.host_data() + static_cast<size_t>(m) * k, static_cast<Element*>(dense));
    return 0;
}

extern "C" {
int dense_f16(int m, int n, int k, const void* a, const void* b, float* d) { return dense<cutlass::half_t, 8>(m, n, k, a, b, d); }
int dense_bf16(int m, int n, int k, const void* a, const void* b, float* d) {
    return dense<cutlass::bfloat16_t, 8>(m, n, k, a, b, d);
}
int sparse_f16(int m, int n, int k, const void* v, const void* e, const void* b, float* d) {
    return sparse<cutlass::half_t>(m, n, k, v, e, b, d);
}
int sparse_bf16(int m, int n, int k, const void* v, const void* e, const void* b, float* d) {
    return sparse<cutlass::bfloat16_t>(m, n, k, v, e, b, d);
}
int reorder_f16(int m, int n, int k, const uint16_t* metadata, uint16_t* out) { return reorder(m, n, k, metadata, out); }
int uncompress_f16(int m, int k, const void* v, const uint16_t* e, void* dense) {
    return uncompress<cutlass::half_t>(m, k, v, e, dense);
}
}
