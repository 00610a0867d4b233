// The launcher of the bitmask product and what it plans behind a C interface, for tests that run it
// in the emulator.
#include "../../csrc/cuda/bitmask_convert.h"
#include "../../csrc/cuda/bitmask_sm80.h"
#include "../../csrc/cuda/kernels_cuda.h"

using namespace prunekern;

extern "C" {
int linear(int64_t M, int64_t N, int64_t K, int64_t sms, int is_half, const void* x,
           const void* values, const void* bitmask, const void* offsets, const void* bias, void* y,
           void* workspace) {
    const CudaProblem problem{
        x, y, bias, M, N, K, is_half ? DType::kFloat16 : DType::kBFloat16, workspace, sms, nullptr};
    return bitmask_linear_sm80(problem, {values, static_cast<const int32_t*>(bitmask),
                                         static_cast<const int32_t*>(offsets)});
}

int decompress(const void* values, const void* bitmask, const void* offsets, int64_t N, int64_t K,
               void* dense) {
    return bitmask_decompress(
        {values, static_cast<const int32_t*>(bitmask), static_cast<const int32_t*>(offsets)}, N, K,
        dense, nullptr);
}

int64_t workspace_bytes(int64_t M, int64_t N, int64_t K, int64_t sms) {
    return bitmask_workspace_bytes(M, N, K, sms);
}

int64_t dense_tokens(int64_t N, int64_t K, int capability) {
    return bitmask_dense_tokens(N, K, capability);
}

struct Plan {
    int64_t decode, block_tokens, tiles, column_tiles, blocks, slot_bytes;
};
void plan(int64_t M, int64_t N, int64_t K, int64_t sms, Plan* out) {
    const BitmaskPlan p = bitmask_plan(M, N, K, sms);
    const Stripes& s = p.stripes;
    *out = {p.decode, p.block_tokens(), s.row_groups, s.column_tiles, s.blocks, p.slot_bytes};
}
}
