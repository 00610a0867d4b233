// From accumulators of y^T to y: tiles of 16 features x 8 tokens, as mma and wgmma hold them.
//
//   lane 4 g + t: features g and g + 8 of tokens 2 t and 2 t + 1; movmatrix turns each 8 x 8 half
//   round, so that a lane has features 2 t and 2 t + 1 of token g: one word, as they lie in y
#pragma once
#include "elements.cuh"
#include "ptx.cuh"

namespace prunekern {

template <class Element>
struct Output {
    void* y;           // [M, N]
    const void* bias;  // [N] or null
    int M, N;

    // Of features row + g and row + g + 8.
    __device__ float2 bias_of(int row, int lane) const {
        const int own = row + lane / 4;
        const auto* b = static_cast<const Element*>(bias);
        return {b && own < N ? to_float(b[own]) : 0.f,
                b && own + 8 < N ? to_float(b[own + 8]) : 0.f};
    }

    __device__ void write(const float (&acc)[4], float2 bias, int row, int token, int lane) const {
        write_half(pack<Element>(acc[0] + bias.x, acc[1] + bias.x), row, token, lane);
        write_half(pack<Element>(acc[2] + bias.y, acc[3] + bias.y), row + 8, token, lane);
    }

  private:
    __device__ void write_half(uint32_t features_by_token, int row, int token, int lane) const {
        const uint32_t pair = ptx::transpose_matrix(features_by_token);
        token += lane / 4, row += lane % 4 * 2;
        if (token >= M || row >= N) return;
        auto* to = static_cast<Element*>(y) + int64_t{token} * N + row;
        const auto* two = reinterpret_cast<const Element*>(&pair);
        if (N % 2 == 0)  // then a row's words are aligned, and the second feature exists
            *reinterpret_cast<uint32_t*>(to) = pair;
        else if (to[0] = two[0]; row + 1 < N)
            to[1] = two[1];
    }
};

}  // namespace prunekern
