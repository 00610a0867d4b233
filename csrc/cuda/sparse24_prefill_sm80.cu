// The product of 16-bit values for many tokens.
#include "sparse24_prefill_sm80.cuh"

namespace prunekern {

template cudaError_t sparse24_prefill_sm80<__half, 16>(const CudaProblem&, const PanelWeight&,
                                                      const Sparse24Plan&);
template cudaError_t sparse24_prefill_sm80<__nv_bfloat16, 16>(const CudaProblem&,
                                                             const PanelWeight&,
                                                             const Sparse24Plan&);

}  // namespace prunekern
