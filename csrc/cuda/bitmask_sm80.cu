// The sm80 variant of the bitmask product: few tokens or many (bitmask_sm80.h).
#include "bitmask_sm80.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "combine.cuh"

namespace prunekern {

int64_t bitmask_workspace_bytes(int64_t M, int64_t N, int64_t K, int64_t sms) {
    const BitmaskPlan plan = bitmask_plan(M, N, K, sms);
    return workspace_bytes(plan.stripes, plan.slot_bytes);
}

template <class Element>
static cudaError_t linear(const CudaProblem& problem, const BitmaskPanels& weight) {
    const BitmaskPlan plan = bitmask_plan(problem.M, problem.N, problem.K, problem.sms);
    return plan.decode ? bitmask_decode_sm80<Element>(problem, weight, plan)
                       : bitmask_prefill_sm80<Element>(problem, weight, plan);
}

cudaError_t bitmask_linear_sm80(const CudaProblem& problem, const BitmaskPanels& weight) {
    return problem.dtype == DType::kFloat16 ? linear<__half>(problem, weight)
                                            : linear<__nv_bfloat16>(problem, weight);
}

}  // namespace prunekern
