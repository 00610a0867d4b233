// The launchers of the CUDA kernels: raw pointers, sizes and a stream, no torch.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "../kernels.h"

namespace prunekern {

// y[M,N] = x[M,K] W[N,K]^T + bias[N], 16-bit elements, fp32 sums. x and y are row-major and dense;
// K is a multiple of 8 and x starts at a multiple of 16 bytes, so that every row does.
struct CudaProblem {
    const void* x;
    void* y;
    const void* bias;  // or null
    int64_t M, N, K;
    DType dtype;
    void* workspace;  // of as many bytes as asked for below, all zero before its first use
    int64_t sms;      // multiprocessors of the device
    cudaStream_t stream;
    void* rounded = nullptr;              // sm80a8: bytes for x rounded, as below
    const float* token_scales = nullptr;  // of x where it was rounded
};

// As cuda/sparse24_fragments.h draws it.
struct PanelWeight {
    const void* values;
    const int32_t* meta;
    const void* scales = nullptr;  // of values of 8 and 4 bits, so many along a row
    int64_t scale_count = 0;
};

// Launches leave the workspace as they want to find it: one a stream; its size: sparse24_sm80.h.
cudaError_t sparse24_linear_sm80(const CudaProblem&, const PanelWeight&);
cudaError_t sparse24_int8_linear_sm80(const CudaProblem&, const PanelWeight&);
cudaError_t sparse24_int4_linear_sm80(const CudaProblem&, const PanelWeight&);

// The same with x rounded to 8 bits token by token, to lie in `rounded` in rows of whole 16 bytes,
// their scales behind them. One scale a row of W.
constexpr int64_t bytes_of_rounded_row(int64_t K) { return (K + 15) / 16 * 16; }
constexpr int64_t bytes_of_rounded(int64_t M, int64_t K) {
    return M * (bytes_of_rounded_row(K) + int64_t{sizeof(float)});
}
cudaError_t sparse24_int8_linear_sm80a8(const CudaProblem&, const PanelWeight&);

// The same for sm_90a; prepare once a device, before its first launch.
cudaError_t sparse24_prepare_sm90a();
cudaError_t sparse24_linear_sm90a(const CudaProblem&, const PanelWeight&);

// As cuda/bitmask_fragments.h draws it.
struct BitmaskPanels {
    const void* values;
    const int32_t* bitmask;
    const int32_t* offsets;
};

// As for 2:4; prepare once a device, before its first launch.
int64_t bitmask_workspace_bytes(int64_t M, int64_t N, int64_t K, int64_t sms);
cudaError_t bitmask_prepare_sm80();
cudaError_t bitmask_linear_sm80(const CudaProblem&, const BitmaskPanels&);

// A CSR weight as cuda/csr_simt.h names its parts.
struct CsrTiles {
    const void* values;
    const void* col_indices;
    const int32_t* crow_indices;
    int64_t units;
};

// For any dtype, any K, and x that starts at a multiple of its element size.
int64_t csr_workspace_bytes(int64_t M, int64_t N, int64_t K, int64_t units, DType dtype,
                            int64_t sms);
cudaError_t csr_linear_simt(const CudaProblem&, const CsrTiles&);

}  // namespace prunekern
