// The launcher of the CSR product and what it plans behind a C interface, for tests that run it in
// the emulator.
#include "../../csrc/cuda/csr_simt.h"

using namespace prunekern;

extern "C" {
int linear(int64_t M, int64_t N, int64_t K, int64_t units, int64_t sms, int dtype, const void* x,
           const void* values, const void* col_indices, const void* crow_indices, const void* bias,
           void* y, void* workspace) {
    const CudaProblem problem{x,         y,   bias,   M, N, K, static_cast<DType>(dtype),
                              workspace, sms, nullptr};
    return csr_linear_simt(problem,
                           {values, col_indices, static_cast<const int32_t*>(crow_indices), units});
}

int64_t workspace_bytes(int64_t M, int64_t N, int64_t K, int64_t units, int64_t sms, int dtype) {
    return csr_workspace_bytes(M, N, K, units, static_cast<DType>(dtype), sms);
}

struct Plan {
    int64_t tokens, token_tiles, blocks, group, slots;
};
void plan(int64_t M, int64_t N, int64_t K, int64_t units, int64_t sms, int64_t element_bytes,
          int64_t counters, Plan* out) {
    const CsrPlan p = csr_plan(M, N, K, units, element_bytes, sms, counters);
    *out = {p.tokens, p.token_tiles, p.blocks, p.group, p.slots};
}

// begin [warps + 1], warp_of [units]
void shares(uint32_t units, uint32_t warps, uint32_t* begin, uint32_t* warp_of) {
    const Shares s = Shares::of(units, warps);
    for (uint32_t w = 0; w <= warps; ++w) begin[w] = s.begin(w);
    for (uint32_t u = 0; u < units; ++u) warp_of[u] = s.warp_of(u);
}
}
