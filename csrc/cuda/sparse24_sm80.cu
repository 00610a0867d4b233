// The sm80 variant of the 2:4 product: few tokens or many (sparse24_sm80.h).
#include "sparse24_sm80.h"

#include "combine.cuh"

namespace prunekern {

static int64_t workspace_bytes_of(const Sparse24Plan& plan) {
    return workspace_bytes(plan.stripes, plan.slot_bytes);
}

int64_t sparse24_workspace_bytes(int64_t M, int64_t N, int64_t K, int64_t sms) {
    return std::max(workspace_bytes_of(sparse24_plan(M, N, K, sms)),
                    workspace_bytes_of(sparse24_plan(M, N, K, sms, true)));
}

cudaError_t sparse24_linear_sm80(const CudaProblem& problem, const PanelWeight& weight) {
    return sparse24_linear_sm80_of<16>(problem, weight);
}

}  // namespace prunekern
