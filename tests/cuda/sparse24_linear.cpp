// The launchers of the 2:4 product behind a C interface, for tests that run them in the emulator.
#include "../../csrc/cuda/kernels_cuda.h"

using namespace prunekern;

extern "C" {
int64_t workspace_bytes_sm80(int64_t M, int64_t N, int64_t K, int64_t sms) {
    return sparse24_sm80_workspace_bytes(M, N, K, sms);
}
int linear_sm80(int64_t M, int64_t N, int64_t K, int64_t sms, int is_half, const void* x,
                const void* values, const void* meta, const void* bias, void* y, void* workspace) {
    const CudaProblem problem{
        x, y, bias, M, N, K, is_half ? DType::kFloat16 : DType::kBFloat16, workspace, sms, nullptr};
    return sparse24_linear_sm80(problem, {values, static_cast<const int32_t*>(meta)});
}
}
