// The sm80 variant of the product of 2:4 with values of 4 bits, for few tokens and many.
#include "sparse24_decode_sm80.cuh"
#include "sparse24_prefill_sm80.cuh"

namespace prunekern {

cudaError_t sparse24_int4_linear_sm80(const CudaProblem& problem, const PanelWeight& weight) {
    return sparse24_linear_sm80_of<4>(problem, weight);
}

}  // namespace prunekern
