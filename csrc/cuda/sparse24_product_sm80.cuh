// The sm80 variant of the 2:4 product: few tokens or many (sparse24_sm80.h), by the bits of a
// value.
#pragma once
#include "sparse24_decode_sm80.cuh"
#include "sparse24_prefill_sm80.cuh"

namespace prunekern {

template <class Step>
cudaError_t sparse24_product_sm80(const CudaProblem& problem, const PanelWeight& weight) {
    const Sparse24Plan plan = sparse24_plan(problem.M, problem.N, problem.K, problem.sms);
    return plan.decode ? sparse24_decode_sm80<Step>(problem, weight, plan)
                       : sparse24_prefill_sm80<Step>(problem, weight, plan);
}

// x of 16 bits, W's values of kBits.
template <int kBits>
cudaError_t sparse24_half_product_sm80(const CudaProblem& problem, const PanelWeight& weight) {
    return problem.dtype == DType::kFloat16
               ? sparse24_product_sm80<HalfStep<__half, kBits>>(problem, weight)
               : sparse24_product_sm80<HalfStep<__nv_bfloat16, kBits>>(problem, weight);
}

}  // namespace prunekern
