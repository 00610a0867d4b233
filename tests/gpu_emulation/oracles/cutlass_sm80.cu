// CUTLASS's own SM80 GEMMs behind a C interface: dense (16-bit, fp32 accumulation) and 2:4 sparse
// (also 8-bit, s32 accumulation) with the metadata made by CUTLASS's host_reorder. Nothing of the
// kernels is ours: they judge the emulator. Row-major A [M, K], column-major B [K, N] (each column
// contiguous), row-major D [M, N].
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
        cutlass::gemm::device::Gemm<Element, RowMajor, Element, ColumnMajor, float, RowMajor, float,
                                    OpClassTensorOp, Sm80, GemmShape<128, 128, 32>,
                                    GemmShape<64, 64, 32>, GemmShape<16, 8, 16>, Epilogue, Swizzle,
                                    3, kAlign, kAlign>;
    typename Gemm::Arguments arguments({m, n, k}, {static_cast<const Element*>(a), k},
                                       {static_cast<const Element*>(b), k}, {d, n}, {d, n},
                                       {1.0f, 0.0f});
    Gemm gemm;
    return static_cast<int>(gemm(arguments));
}

// A 32-byte slice of A's stored row an instruction, whatever the element's width.
template <typename Element, typename Sum>
struct Sparse {
    static constexpr int kK = 512 / cutlass::sizeof_bits<Element>::value;
    using Epilogue = cutlass::epilogue::thread::LinearCombination<Sum, 1, Sum, Sum>;
    using Gemm =
        cutlass::gemm::device::SparseGemm<Element, RowMajor, Element, ColumnMajor, Sum, RowMajor,
                                          Sum, OpClassTensorOp, Sm80, GemmShape<128, 128, 2 * kK>,
                                          GemmShape<64, 64, 2 * kK>, GemmShape<16, 8, kK>, Epilogue,
                                          Swizzle, 3>;
    using Word = typename Gemm::ElementE;
    // Columns whose metadata is one word: four bits each four.
    static constexpr int kColumns = cutlass::sizeof_bits<Word>::value;
};

// values [M, K / 2]; metadata as reorder() makes it of the canonical metadata: each row's 4-bit
// groups in words, low first.
template <typename Element, typename Sum>
int sparse(int m, int n, int k, const void* values, const void* reordered, const void* b, Sum* d) {
    using S = Sparse<Element, Sum>;
    using Gemm = typename S::Gemm;
    auto metadata = const_cast<typename S::Word*>(static_cast<const typename S::Word*>(reordered));
    typename Gemm::Arguments arguments({m, n, k}, {static_cast<const Element*>(values), k / 2},
                                       {static_cast<const Element*>(b), k}, {d, n}, {d, n},
                                       {metadata, Gemm::LayoutE::packed({m, k / S::kColumns})},
                                       {Sum(1), Sum(0)});
    Gemm gemm;
    return static_cast<int>(gemm(arguments));
}

// Returns the number of words.
template <typename Element, typename Sum>
int reorder(int m, int n, int k, const void* metadata, void* out) {
    using S = Sparse<Element, Sum>;
    using Word = typename S::Word;
    int columns = k / S::kColumns;
    cutlass::HostTensor<Word, RowMajor> plain({m, columns}, false);
    cutlass::HostTensor<Word, typename S::Gemm::LayoutE> reordered({m, columns}, false);
    std::copy_n(static_cast<const Word*>(metadata), static_cast<size_t>(m) * columns,
                plain.host_data());
    cutlass::reorder_meta(reordered.host_ref(), plain.host_ref(), {m, n, columns});
    std::copy_n(reordered.host_data(), reordered.capacity(), static_cast<Word*>(out));
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
    std::copy(out.host_data(), out.host_data() + static_cast<size_t>(m) * k,
              static_cast<Element*>(dense));
    return 0;
}

extern "C" {
int dense_f16(int m, int n, int k, const void* a, const void* b, float* d) {
    return dense<cutlass::half_t, 8>(m, n, k, a, b, d);
}
int dense_bf16(int m, int n, int k, const void* a, const void* b, float* d) {
    return dense<cutlass::bfloat16_t, 8>(m, n, k, a, b, d);
}
int sparse_f16(int m, int n, int k, const void* v, const void* e, const void* b, float* d) {
    return sparse<cutlass::half_t, float>(m, n, k, v, e, b, d);
}
int sparse_bf16(int m, int n, int k, const void* v, const void* e, const void* b, float* d) {
    return sparse<cutlass::bfloat16_t, float>(m, n, k, v, e, b, d);
}
int sparse_s8(int m, int n, int k, const void* v, const void* e, const void* b, int32_t* d) {
    return sparse<int8_t, int32_t>(m, n, k, v, e, b, d);
}
int reorder_f16(int m, int n, int k, const void* metadata, void* out) {
    return reorder<cutlass::half_t, float>(m, n, k, metadata, out);
}
int reorder_s8(int m, int n, int k, const void* metadata, void* out) {
    return reorder<int8_t, int32_t>(m, n, k, metadata, out);
}
int uncompress_f16(int m, int k, const void* v, const uint16_t* e, void* dense) {
    return uncompress<cutlass::half_t>(m, k, v, e, dense);
}
}
