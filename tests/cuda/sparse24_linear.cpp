// The launchers of the 2:4 product behind a C interface, for tests that run them in the emulator.
#include "../../csrc/cuda/kernels_cuda.h"

using namespace prunekern;

extern "C" {
int64_t workspace_bytes_sm80(int64_t M, int64_t N, int64_t K, int64_t sms) {
    return sparse24_sm80_workspace_bytes(M, N, K, sms);
}
int linear(decltype(sparse24_linear_sm80)* function, int64_t M, int64_t N, int64_t K, int64_t sms,
           int is_half, const void* x, const void* values, const void* meta, const void* bias,
           void* y, void* workspace) {
    const CudaProblem problem{
        x, y, bias, M, N, K, is_half ? DType::kFloat16 : DType::kBFloat16, workspace, sms, nullptr};
    return function(problem, {values, static_cast<const int32_t*>(meta)});
}
#define LINEAR(variant)                                                                            \
    int linear_##variant(int64_t M, int64_t N, int64_t K, int64_t sms, int is_half, const void* x, \
                         const void* values, const void* meta, const void* bias, void* y,          \
                         void* workspace) {                                                        \
        return linear(sparse24_linear_##variant, M, N, K, sms, is_half, x, values, meta, bias, y,  \
                      workspace);                                                                  \
    }
LINEAR(sm80)
#if defined(PRUNEKERN_TEST_SM90A)
LINEAR(sm90a)
#endif
}
