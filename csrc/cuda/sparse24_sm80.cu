// The sm80 variant of the 2:4 product, of values of 16 bits.
#include "sparse24_product_sm80.cuh"

namespace prunekern {

cudaError_t sparse24_linear_sm80(const CudaProblem& problem, const PanelWeight& weight) {
    return sparse24_half_product_sm80<16>(problem, weight);
}

}  // namespace prunekern
