// A launcher of the 2:4 product, PRUNEKERN_TEST_LAUNCHER, and what it plans behind a C interface,
// for tests that run it in the emulator.
#include "../../csrc/cuda/kernels_cuda.h"
#include "../../csrc/cuda/sparse24_sm80.h"

using namespace prunekern;

extern "C" {
int linear(int64_t M, int64_t N, int64_t K, int64_t sms, int64_t scale_count, int is_half,
           const void* x, const void* values, const void* meta, const void* scales, void* rounded,
           const void* bias, void* y, void* workspace) {
    const DType dtype = is_half ? DType::kFloat16 : DType::kBFloat16;
    const CudaProblem problem{x, y, bias, M, N, K, dtype, workspace, sms, nullptr, rounded};
    return PRUNEKERN_TEST_LAUNCHER(
        problem, {values, static_cast<const int32_t*>(meta), scales, scale_count});
}

int64_t workspace_bytes(int64_t M, int64_t N, int64_t K, int64_t sms) {
    return sparse24_workspace_bytes(M, N, K, sms);
}

int64_t rounded_bytes(int64_t M, int64_t K) { return bytes_of_rounded(M, K); }

struct Plan {
    int64_t decode, block_tokens, tiles, column_tiles, blocks, slot_bytes;
};
void plan(int64_t M, int64_t N, int64_t K, int64_t sms, int wgmma, Plan* out) {
    const Sparse24Plan p = sparse24_plan(M, N, K, sms, wgmma);
    const Stripes& s = p.stripes;
    *out = {p.decode, p.block_tokens(), s.row_groups, s.column_tiles, s.blocks, p.slot_bytes};
}

// begin [blocks + 1]; block_of [row_groups, column_tiles]; first and last [row_groups]; slot
// [row_groups, blocks]
void stripes(int row_groups, int column_tiles, int blocks, int* begin, int* block_of, int* first,
             int* last, int* slot) {
    const Stripes s{row_groups, column_tiles, blocks};
    for (int b = 0; b <= blocks; ++b) begin[b] = s.begin(b);
    for (int panel = 0; panel < s.panels(); ++panel) block_of[panel] = s.block_of(panel);
    for (int r = 0; r < row_groups; ++r) {
        first[r] = s.first_block(r), last[r] = s.last_block(r);
        for (int b = 0; b < blocks; ++b) slot[r * blocks + b] = s.slot(b, r);
    }
}
}
