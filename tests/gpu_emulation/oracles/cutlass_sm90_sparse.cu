// CUTLASS's own SM90 2:4 sparse GEMM and its compressor kernel behind a C interface. Nothing of the
// kernels is ours: they judge the emulator's wgmma.sp and where its metadata lies.
#include <cutlass/transform/device/transform_universal_adapter.hpp>
#include <cutlass/transform/kernel/sparse_gemm_compressor.hpp>

#include "cutlass_sm90.cuh"

// a is the dense matrix with 2:4 zeros; the compressor kernel makes values and metadata into the
// scratch buffers.
template <typename Element>
struct Sparse24 {
    using GemmKernel = typename Kernel<Element, cutlass::arch::OpClassSparseTensorOp>::Type;
    using Gemm = cutlass::gemm::device::GemmUniversalAdapter<GemmKernel>;
    using LayoutA = typename GemmKernel::CollectiveMainloop::LayoutA;
    using LayoutE = typename GemmKernel::CollectiveMainloop::LayoutE;
    using StrideA = cutlass::gemm::TagToStrideA_t<Row>;
    using Config = typename GemmKernel::CollectiveMainloop::SparseConfig;
    using Utility =
        cutlass::transform::kernel::StructuredSparseCompressorUtility<Shape<int, int, int, int>,
                                                                      Element, Row, Config>;
    using CompressorKernel =
        cutlass::transform::kernel::StructuredSparseCompressor<Shape<int, int, int, int>, Element,
                                                               Row, Config, cutlass::arch::Sm90>;
    using Compressor = cutlass::transform::device::TransformUniversalAdapter<CompressorKernel>;

    static Utility utility(int m, int n, int k) {
        return {make_shape(m, n, k, 1),
                cutlass::make_cute_packed_stride(StrideA{}, make_shape(m, k, 1))};
    }
    static int compress(int m, int n, int k, const void* a, void* values, void* metadata) {
        cutlass::KernelHardwareInfo hardware{0, 4};
        auto stride = cutlass::make_cute_packed_stride(StrideA{}, make_shape(m, k, 1));
        typename Compressor::Arguments arguments{
            {m, n, k, 1}, {a, stride, values, metadata}, {hardware}};
        return launch<Compressor>(arguments);
    }
    static int multiply(int m, int n, int k, const void* values, const void* metadata,
                        const void* b, float* d) {
        auto layout_a = Config::fill_layoutA(make_shape(m, n, k, 1));
        auto layout_e = Config::fill_layoutE(make_shape(m, n, k, 1));
        auto stride_b =
            cutlass::make_cute_packed_stride(typename GemmKernel::StrideB{}, make_shape(n, k, 1));
        auto stride_d =
            cutlass::make_cute_packed_stride(typename GemmKernel::StrideD{}, make_shape(m, n, 1));
        cutlass::KernelHardwareInfo hardware{0, 4};
        typename Gemm::Arguments arguments{
            cutlass::gemm::GemmUniversalMode::kGemm,
            {m, n, k, 1},
            {static_cast<const Element*>(values), layout_a, static_cast<const Element*>(b),
             stride_b,
             static_cast<const typename GemmKernel::CollectiveMainloop::ElementE*>(metadata),
             layout_e},
            {{1.0f, 0.0f}, d, stride_d, d, stride_d},
            hardware};
        return launch<Gemm>(arguments);
    }
};

extern "C" {
// Bytes of the compressor's two outputs.
void compressed_bytes(int m, int n, int k, size_t* values, size_t* metadata) {
    auto utility = Sparse24<cutlass::half_t>::utility(m, n, k);
    *values = utility.get_compressed_tensor_A_bytes();
    *metadata = utility.get_tensor_E_bytes();
}
int compress_f16(int m, int n, int k, const void* a, void* v, void* e) {
    return Sparse24<cutlass::half_t>::compress(m, n, k, a, v, e);
}
int sparse_f16(int m, int n, int k, const void* v, const void* e, const void* b, float* d) {
    return Sparse24<cutlass::half_t>::multiply(m, n, k, v, e, b, d);
}
}
