// What each kernel of the bitmask product is given, and how it is filled in.
#pragma once
#include "bitmask_sm80.h"

namespace prunekern {

struct BitmaskArguments {
    const char* values;
    const char* bitmask;
    const int32_t* offsets;
    const void* x;
    void* y;
    const void* bias;  // or null
    int M, N, K;
    int row_blocks;  // of prefill; tiles of y are row blocks first, then the next tokens
    Stripes stripes;
    void* workspace;
};

inline BitmaskArguments arguments_of(const CudaProblem& problem, const BitmaskPanels& weight,
                                     const BitmaskPlan& plan) {
    return {static_cast<const char*>(weight.values),
            reinterpret_cast<const char*>(weight.bitmask),
            weight.offsets,
            problem.x,
            problem.y,
            problem.bias,
            static_cast<int>(problem.M),
            static_cast<int>(problem.N),
            static_cast<int>(problem.K),
            static_cast<int>(bitmask_fragments::ceil_div(problem.N, kPrefillRows)),
            plan.stripes,
            problem.workspace};
}

}  // namespace prunekern
