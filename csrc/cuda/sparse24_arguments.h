// What each kernel of the 2:4 product is given, and how it is filled in.
#pragma once
#include "sparse24_sm80.h"

namespace prunekern {

struct Sparse24Arguments {
    const char* values;
    const char* meta;
    const char* scales;  // or null, and how they are counted: sparse24_fragments.h
    int scale_count, scale_shift;
    const float* token_scales;  // where x is whole numbers of 8 bits, else null
    const void* x;
    void* y;
    const void* bias;  // or null
    int M, N, K;
    int row_blocks;  // of prefill: 256 rows; tiles of y are row blocks first, then the next tokens
    Stripes stripes;
    void* workspace;
};

inline Sparse24Arguments arguments_of(const CudaProblem& problem, const PanelWeight& weight,
                                      const Sparse24Plan& plan) {
    using namespace sparse24_fragments;
    return {static_cast<const char*>(weight.values),
            reinterpret_cast<const char*>(weight.meta),
            static_cast<const char*>(weight.scales),
            static_cast<int>(weight.scale_count),
            scale_shift(column_tiles(problem.K), weight.scale_count),
            problem.token_scales,
            problem.x,
            problem.y,
            problem.bias,
            static_cast<int>(problem.M),
            static_cast<int>(problem.N),
            static_cast<int>(problem.K),
            static_cast<int>(ceil_div(row_groups(problem.N), kPrefillRowWarps)),
            plan.stripes,
            problem.workspace};
}

}  // namespace prunekern
