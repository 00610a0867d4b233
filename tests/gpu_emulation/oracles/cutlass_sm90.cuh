// What cutlass_sm90_dense.cu and cutlass_sm90_sparse.cu share: CUTLASS's warp-specialised SM90
// kernel (TMA, mbarrier, wgmma) of one tile shape, and its launch by CUTLASS's own host code.
// Row-major A [M, K], column-major B [K, N] (each column contiguous), row-major D [M, N] in
// float32.
#pragma once
#include <cuda_runtime.h>
#include <cute/tensor.hpp>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/gemm/kernel/gemm_universal.hpp>
#include <cutlass/util/packed_stride.hpp>

using namespace cute;
using Row = cutlass::layout::RowMajor;
using Column = cutlass::layout::ColumnMajor;

template <typename Element, typename OpClass>
struct Kernel {
    using Tile = Shape<_128, _128, _64>;
    using Cluster = Shape<_1, _1, _1>;
    using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
        cutlass::arch::Sm90, OpClass, Tile, Cluster,
        cutlass::epilogue::collective::EpilogueTileAuto, float, float, float, Row, 4, float, Row, 4,
        cutlass::epilogue::TmaWarpSpecialized>::CollectiveOp;
    using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
        cutlass::arch::Sm90, OpClass, Element, Row,
        8 * (std::is_same_v<OpClass, cutlass::arch::OpClassTensorOp> ? 1 : 2), Element, Column, 8,
        float, Tile, Cluster,
        cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(
            sizeof(typename Epilogue::SharedStorage))>,
        cutlass::gemm::KernelTmaWarpSpecialized>::CollectiveOp;
    using Type =
        cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, Mainloop, Epilogue>;
};

// Without a workspace: the compressor names a size that it does not use, the others need none.
template <typename Gemm>
int launch(typename Gemm::Arguments arguments) {
    Gemm gemm;
    if (auto status = gemm.can_implement(arguments); status != cutlass::Status::kSuccess)
        return static_cast<int>(status);
    if (auto status = gemm.initialize(arguments, nullptr); status != cutlass::Status::kSuccess)
        return static_cast<int>(status);
    return static_cast<int>(gemm.run());
}
