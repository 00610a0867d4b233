// y[M,N] = x[M,K] W[N,K]^T + bias for few tokens, M <= 16, W 2:4 in panels (sparse24_fragments.h).
//
// mma.sp takes its sparse operand as A, so rows of the product are out features, columns tokens. A
// warp takes panels of 64 x 64 one by one, straight from global memory into the registers that the
// instruction wants, and a block's warps take turns along K:
//
//        K -->  c     c+1    c+2    c+3    c+4 ...         panel: 9 16-byte loads a lane, the
//     W  64  | w 0  | w 1  | w 2  | w 3  | w 0  ...        next one's in flight meanwhile
//     x   M  | ring of w 0 | ring of w 1 | ...             cp.async to shared memory, a ring of
//                                                          kStages panels a warp: no barriers
//
// x in shared memory: a token's 128 bytes of a panel, its 16-byte pieces in the order piece ^
// (token % 8), so that copies and ldmatrix are without conflicts; ldmatrix gives B's fragment as it
// lies. Blocks take equal stripes of all panels (stripes.h) and a row group's parts are added in a
// fixed order: within the block by warp, then by block (combine.cuh).
//
// Limit: bytes of W, 1.125 a weight, read once; x adds M / 32 bytes a weight from L2, a fifth of
// W's at M = 8. By Little's law 12 (A100), 17 (H100), 5 (RTX 4090) KB must be in flight a
// multiprocessor; two blocks' 8 warps with a panel and the next have 37 to 74. Issue: 38
// instructions a panel in the loop, 9.5 for 1024 weights, of the 172 that an A100 has time for.
//
// Whole numbers of 8 and 4 bits (sparse24_values.cuh): 0.625 and 0.375 bytes a weight, and 1/32 for
// scales of 64 inputs. While those of 1024 weights arrive an A100 issues 191 and 124 instructions,
// an H100 115 and an H200 80 of 4 bits; emulated, 55 to 66 and 57 to 60 are needed at 8 tokens. So
// memory binds on all of them, on an H200 with least to spare. Panels are small: three are in
// flight, of 4 bits 40 KB a multiprocessor.
//
// One token uses one of the eight columns of an mma.sp. A product by plain FMAs would be no better:
// 1024 weights are 512 kept ones, for each lane 16 FMAs, 16 selections of x by the metadata and 8
// conversions of pairs: more than all of the above together, to save two mma.sp that nobody waits
// for.
#pragma once
#include "combine.cuh"
#include "launch.h"
#include "output.cuh"
#include "ptx.cuh"
#include "sparse24_values.cuh"

namespace prunekern {
namespace decode_sm80 {

using namespace sparse24_fragments;

constexpr int kWarps = kDecodeWarps, kThreads = kWarps * kLanes, kStages = 4;

using Decode = Sparse24Arguments;

template <class Step>
struct Panel {
    Step steps[kSteps];
    uint32_t meta[kRowTiles];
};

template <class Step, int kTokenTiles>
struct Warp {
    using Panel = decode_sm80::Panel<Step>;
    // In registers: one multiplied, the others in flight, more where they are small.
    static constexpr int kPanels = Step::kPanelBytes == values_bytes(16) ? 2 : kStages;
    static constexpr int kTokens = kTokenTiles * kTileTokens, kStageBytes = kTokens * 128;
    static constexpr int kCopies = kTokens / 4;            // of a panel's x, a lane
    static constexpr int kStride = kWarps * kColumns * 2;  // bytes of x from panel to panel

    const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
    const uint64_t policy = ptx::evict_first_policy();
    PanelReader<Step> weight;                // at the panel that the first stage holds next
    const char* x[kCopies];                  // token by token
    int left;                                // bytes from there to the row's end
    int bytes[kCopies];                      // to copy: 16, or 0 where there is no such token
    uint32_t copy_to[2], read_from[kSteps];  // in the ring's first stage
    typename Step::Sum acc[kRowTiles][kTokenTiles][4];

    __device__ Warp(const Decode& p, const uint4* smem_x) {
        const uint32_t ring = ptx::shared_address(smem_x) + warp * kStages * kStageBytes;
#pragma unroll
        for (int i = 0; i < kCopies; ++i) {
            bytes[i] = lane / 8 + 4 * i < p.M ? 16 : 0;
            ptx::keep(bytes[i]);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int token = lane / 8 + 4 * i;
            copy_to[i] = ring + token * 128 + (lane % 8 ^ token) * 16;
            read_from[i] = ring + lane % 8 * 128 + ((i * 4 + lane / 8) ^ lane % 8) * 16;
            ptx::keep(copy_to[i]), ptx::keep(read_from[i]);
        }
    }

    // kAhead counts this warp's panels from the one in the first stage.
    template <int kAhead>
    __device__ void load(Panel& panel) const {
        const auto streaming = [&](auto offset, const char* from) {
            return ptx::load_streaming<offset.value>(from, policy);
        };
        ptx::unrolled<kSteps>([&](auto step) {
            weight.template load_step<kAhead * kWarps, step.value>(panel.steps[step.value],
                                                                   streaming);
        });
        weight.template load_meta<kAhead * kWarps>(panel.meta, streaming);
    }

    template <int kAhead>
    __device__ void copy_x() const {
        constexpr int kFrom = kAhead * kStride, kStage = kAhead % kStages * kStageBytes;
        const bool inside = left > kFrom;
        ptx::unrolled<kCopies>([&](auto i) {
            ptx::copy_async<kStage + i.value / 2 * 1024, kFrom>(copy_to[i.value % 2], x[i.value],
                                                                inside ? bytes[i.value] : 0);
        });
    }

    template <int kStage, int kStep>
    __device__ void multiply_step(const Panel& panel) {
        const Step& step = panel.steps[kStep];
        uint4 fragments[kRowTiles];
        ptx::unrolled<kRowTiles>(
            [&](auto r) { fragments[r.value] = step.template fragment<r.value>(); });
        ptx::unrolled<kTokenTiles>([&](auto n) {
            const uint4 b =
                ptx::load_matrices<n.value * 1024 + kStage * kStageBytes>(read_from[kStep]);
            ptx::unrolled<kRowTiles>([&](auto r) {
                Step::template multiply<kStep>(acc[r.value][n.value], fragments[r.value], b,
                                               step.template meta<r.value>(panel.meta));
            });
        });
    }

    // The products of `count` panels of a row group, every kWarps-th from a column tile on.
    __device__ void multiply(const Decode& p, int row_group, int column_tile, int count) {
#pragma unroll
        for (int i = 0; i < kRowTiles * kTokenTiles * 4; ++i) (&acc[0][0][0])[i] = 0;
        weight.begin(p, row_group, column_tile, lane);
        const int piece = (column_tile * kColumns + lane % 8 * 8) * 2;
        left = p.K * 2 - piece;
#pragma unroll
        for (int i = 0; i < kCopies; ++i) {
            x[i] = static_cast<const char*>(p.x) + int64_t{lane / 8 + 4 * i} * p.K * 2 + piece;
            ptx::keep(x[i]);
        }
        Panel panels[kPanels];
        ptx::unrolled<kPanels - 1>([&](auto ahead) {
            if (ahead.value < count) load<ahead.value>(panels[ahead.value]);
        });
        ptx::unrolled<kStages - 1>([&](auto stage) {
            if (stage.value < count) copy_x<stage.value>();
            ptx::commit_copies();
        });
        for (; count > 0; count -= kStages) {
            ptx::unrolled<kStages>([&](auto stage) {
                constexpr int kStage = stage.value;
                if (kStage >= count) return;
                constexpr int kAhead = kStage + kPanels - 1;
                if (kAhead < count) load<kAhead>(panels[kAhead % kPanels]);
                ptx::wait_copies<kStages - 2>();
                __syncwarp();  // the copies of all lanes; and the stage before this one is free
                multiply_step<kStage, 0>(panels[kStage % kPanels]);
                multiply_step<kStage, 1>(panels[kStage % kPanels]);
                if (kStage + kStages - 1 < count) copy_x<kStage + kStages - 1>();
                ptx::commit_copies();
            });
            weight.template advance<kStages * kWarps>();
#pragma unroll
            for (auto& row : x) row += kStages * kStride;
            left -= kStages * kStride;
        }
        ptx::wait_copies<0>();
        __syncwarp();  // the ring is free
#pragma unroll
        for (int i = 0; i < kRowTiles * kTokenTiles; ++i) Step::to_float((&acc[0][0])[i]);
    }
};

template <class Step, int kTokenTiles>
__global__ void __launch_bounds__(kThreads, kDecodeBlocksPerSm)
    sparse24_decode_sm80_kernel(const __grid_constant__ Decode p) {
    using W = Warp<Step, kTokenTiles>;
    constexpr int kTiles = kRowTiles * kTokenTiles;
    __shared__ __align__(128) uint4 smem_x[kWarps * kStages * W::kStageBytes / 16];
    __shared__ float4 smem_sums[kWarps * kTiles * kLanes];
    W warp(p, smem_x);
    const Output<typename Step::Element> out{p.y, p.bias, p.M, p.N};
    p.stripes.for_segments(blockIdx.x, [&](int row_group, int column, int length) {
        warp.multiply(p, row_group, column + warp.warp, (length - warp.warp + kWarps - 1) / kWarps);
        float4 sums[kTiles / kWarps];
        add_warps<kWarps>(reinterpret_cast<float (&)[kTiles][4]>(warp.acc), sums, smem_sums);
        if (!combine<WholeBlock<kThreads>>(sums, p.stripes, row_group, p.workspace)) return;
#pragma unroll
        for (int i = 0; i < kTiles / kWarps; ++i) {
            const int tile = i * kWarps + warp.warp;
            const int row = row_group * kRows + tile / kTokenTiles * 16;
            const int token = tile % kTokenTiles * kTileTokens;
            auto& of_tile = reinterpret_cast<float (&)[4]>(sums[i]);
            Step::scale(of_tile, p, row, token, warp.lane);
            out.write(of_tile, out.bias_of(row, warp.lane), row, token, warp.lane);
        }
    });
}

}  // namespace decode_sm80

template <class Step>
cudaError_t sparse24_decode_sm80(const CudaProblem& problem, const PanelWeight& weight,
                                 const Sparse24Plan& plan) {
    using namespace decode_sm80;
    auto* kernel = plan.token_tiles == 1 ? sparse24_decode_sm80_kernel<Step, 1>
                                         : sparse24_decode_sm80_kernel<Step, 2>;
    return launch(kernel, {plan.stripes.blocks, kThreads}, problem.stream,
                  arguments_of(problem, weight, plan));
}

}  // namespace prunekern
