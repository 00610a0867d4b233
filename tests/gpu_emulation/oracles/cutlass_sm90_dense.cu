// CUTLASS's own SM90 dense GEMM behind a C interface. Nothing of the kernel is ours: it judges the
// emulator's TMA, mbarrier and wgmma.
#include "cutlass_sm90.cuh"

template <typename Element>
int dense(int m, int n, int k, const void* a, const void* b, float* d) {
    using GemmKernel = typename Kernel<Element, cutlass::arch::OpClassTensorOp>::Type;
    using Gemm = cutlass::gemm::device::GemmUniversalAdapter<GemmKernel>;
    auto stride_a =
        cutlass::make_cute_packed_stride(typename GemmKernel::StrideA{}, make_shape(m, k, 1));
    auto stride_b =
        cutlass::make_cute_packed_stride(typename GemmKernel::StrideB{}, make_shape(n, k, 1));
    auto stride_d =
        cutlass::make_cute_packed_stride(typename GemmKernel::StrideD{}, make_shape(m, n, 1));
    cutlass::KernelHardwareInfo hardware{0, 4};
    return launch<Gemm>(
        {cutlass::gemm::GemmUniversalMode::kGemm,
         {m, n, k, 1},
         {static_cast<const Element*>(a), stride_a, static_cast<const Element*>(b), stride_b},
         {{1.0f, 0.0f}, d, stride_d, d, stride_d},
         hardware});
}

extern "C" {
int dense_f16(int m, int n, int k, const void* a, const void* b, float* d) {
    return dense<cutlass::half_t>(m, n, k, a, b, d);
}
int dense_bf16(int m, int n, int k, const void* a, const void* b, float* d) {
    return dense<cutlass::bfloat16_t>(m, n, k, a, b, d);
}
}
