// y[M,N] = x[M,K] W[N,K]^T + bias for many tokens, W 2:4 in panels (sparse24_fragments.h).
//
// A block makes 256 out features x 32, 64 or 128 tokens of y^T, a warp 64 x 32 or 64 of them:
//
//         K -->  a panel of 64 a turn          W: straight into registers, some steps ahead
//   W  w0 |  64 x 64  | --> registers          x: cp.async to a ring of kStages turns in shared
//      w1 |  64 x 64  |                           memory that all four row warps read
//      w2 |  64 x 64  |
//      w3 |  64 x 64  |   tokens: w0-3 | w4-7
//   x   tokens x 64   --> shared memory --> ldmatrix --> B fragments, as they lie
//
// x in shared memory: 128 bytes a token and turn, its 16-byte pieces in the order piece ^ (token %
// 8): copies and ldmatrix are without conflicts.
//
// Limit: the tensor core takes a mma.sp m16n8k32 in 2 clocks of a multiprocessor (A100); the data
// path to registers moves a wavefront of 128 bytes a clock. For a warp's 64 mma.sp of a turn: 36
// wavefronts of W, 64 of ldmatrix and its share of 16 of the copies of x: 1.81 a mma.sp, so the
// tensor core binds. W by way of shared memory would add its writes: 2.1 to 2.3, and they would
// bind. 128 accumulators leave one block of 8 warps a multiprocessor; a step's 32 mma.sp of the two
// warps of a scheduler last 512 clocks, longer than L2 takes. At 64 tokens and fewer W's bytes
// bind: half the accumulators leave registers for three steps of W in flight.
//
// Whole numbers of 8 and 4 bits are expanded where they arrive, once for all tokens of the warp: 4
// to 5 instructions a mma.sp at 64 tokens a warp, during which an A100 issues eight. So the tensor
// core binds as before, and there is no number of tokens from which making W dense first would pay.
// At 32 a warp it is nearly eight, where bytes bind.
#pragma once
#include "combine.cuh"
#include "launch.h"
#include "output.cuh"
#include "ptx.cuh"
#include "sparse24_values.cuh"

namespace prunekern {
namespace prefill_sm80 {

using namespace sparse24_fragments;

constexpr int kStages = 3, kRowWarps = kPrefillRowWarps;

using Prefill = Sparse24Arguments;

template <class Step, int kTokenWarps, int kTokenTiles>
struct Warp {
    static constexpr int kThreads = kRowWarps * kTokenWarps * kLanes;
    static constexpr int kTokens = kTokenWarps * kTokenTiles * kTileTokens;  // of the block
    static constexpr int kStageBytes = kTokens * 128;
    static constexpr int kCopies = kTokens * 8 / kThreads;  // of a turn's x, a thread
    static constexpr int kCopyTokens = kThreads / 8;        // that one round of copies serves
    static constexpr int kTurnBytes = kColumns * 2;         // of a row of x
    // Steps of W in flight: as many as the accumulators leave registers for. Buffers come round
    // within the 2 kStages turns that are unrolled.
    static constexpr int kDepth = kTokenTiles <= 4 ? 3 : 1, kWords = kDepth / kSteps + 2;
    static_assert(2 * kStages * kSteps % (kDepth + 1) == 0 && 2 * kStages % kWords == 0);

    const int lane = threadIdx.x % kLanes;
    const int row_warp = threadIdx.x / kLanes % kRowWarps;
    const int token_warp = threadIdx.x / kLanes / kRowWarps;
    uint32_t copy_to, read_from[kSteps];  // in the ring's first stage
    PanelReader<Step> weight;             // at the next panel
    const char* x[kCopies];               // token by token, at this thread's piece of the next turn
    int bytes[kCopies];                   // to copy: 16, or 0 where there is no such token
    int left;                             // bytes to the end of x's row
    typename Step::Sum acc[kRowTiles * kTokenTiles][4];

    __device__ explicit Warp(const uint4* smem_x) {
        const uint32_t ring = ptx::shared_address(smem_x);
        const int token = threadIdx.x / 8, piece = threadIdx.x % 8;
        copy_to = ring + token * 128 + (piece ^ token % 8) * 16;
        const uint32_t mine = ring + (token_warp * kTokenTiles * kTileTokens + lane % 8) * 128;
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            read_from[step] = mine + ((step * 4 + lane / 8) ^ lane % 8) * 16;
            ptx::keep(read_from[step]);
        }
        ptx::keep(copy_to);
    }

    // To a column tile of the row group and of the block's tokens.
    __device__ void begin(const Prefill& p, int row_group, int first_token, int column_tile) {
        weight.begin(p, row_group, column_tile, lane);
        const int token = first_token + threadIdx.x / 8;
        const int piece = (column_tile * kColumns + threadIdx.x % 8 * 8) * 2;
        left = p.K * 2 - piece;
#pragma unroll
        for (int i = 0; i < kCopies; ++i) {
            const int t = token + i * kCopyTokens;
            x[i] = static_cast<const char*>(p.x) + int64_t{t} * p.K * 2 + piece;
            bytes[i] = t < p.M ? 16 : 0;
            ptx::keep(x[i]), ptx::keep(bytes[i]);
        }
#pragma unroll
        for (auto& sums : acc) sums[0] = sums[1] = sums[2] = sums[3] = 0;
    }

    // kAhead counts steps from the first of the panel that `weight` is at.
    template <int kAhead>
    __device__ void load(Step& to, uint32_t (&meta)[kWords][kRowTiles], int turn) const {
        constexpr int kPanel = kAhead / kSteps, kStep = kAhead % kSteps;
        const auto shared_by_many = [](auto offset, const char* from) {
            return ptx::load_shared_by_many<offset.value>(from);
        };
        weight.template load_step<kPanel, kStep>(to, shared_by_many);
        if (kStep == 0)
            weight.template load_meta<kPanel>(meta[(turn + kPanel) % kWords], shared_by_many);
    }

    template <int kStage>
    __device__ void copy_x() {
        const bool inside = left > 0;
        ptx::unrolled<kCopies>([&](auto i) {
            // kCopyTokens is a multiple of 8: the order of the pieces is the same
            ptx::copy_async<kStage * kStageBytes + i.value * kCopyTokens * 128, 0>(
                copy_to, x[i.value], inside ? bytes[i.value] : 0);
            x[i.value] += kTurnBytes;
        });
        left -= kTurnBytes;
    }

    template <int kStage, int kStep>
    __device__ void multiply(const Step& step, const uint32_t (&meta)[kRowTiles]) {
        uint4 fragments[kRowTiles];
        ptx::unrolled<kRowTiles>(
            [&](auto r) { fragments[r.value] = step.template fragment<r.value>(); });
        ptx::unrolled<kTokenTiles>([&](auto n) {
            const uint4 b =
                ptx::load_matrices<kStage * kStageBytes + n.value * 1024>(read_from[kStep]);
            ptx::unrolled<kRowTiles>([&](auto r) {
                Step::template multiply<kStep>(acc[r.value * kTokenTiles + n.value],
                                               fragments[r.value], b,
                                               step.template meta<r.value>(meta));
            });
        });
    }

    // The products of `count` column tiles from begin() on. Warps beyond the last row group copy
    // and wait with the others.
    __device__ void turns(int count, bool exists) {
        Step steps[kDepth + 1];
        uint32_t meta[kWords][kRowTiles];
        ptx::unrolled<kDepth>([&](auto ahead) {
            if (exists && ahead.value / kSteps < count)
                load<ahead.value>(steps[ahead.value], meta, 0);
        });
        ptx::unrolled<kStages - 1>([&](auto stage) {
            if (stage.value < count) copy_x<stage.value>();
            ptx::commit_copies();
        });
        for (; count > 0; count -= 2 * kStages)
            ptx::unrolled<2 * kStages>([&](auto turn) {
                constexpr int kTurn = turn.value, kStage = kTurn % kStages;
                if (kTurn >= count) return;
                ptx::wait_copies<kStages - 2>();
                __syncthreads();  // everyone's copies of this turn; and the turn before is done
                if (kTurn + kStages - 1 < count) copy_x<(kStage + kStages - 1) % kStages>();
                ptx::commit_copies();
                if (!exists) return;
                ptx::unrolled<kSteps>([&](auto step) {
                    constexpr int kStep = kTurn * kSteps + step.value;
                    constexpr int kAhead = step.value + kDepth;
                    if (kTurn + kAhead / kSteps < count)
                        load<kAhead>(steps[(kStep + kDepth) % (kDepth + 1)], meta, kTurn);
                    multiply<kStage, step.value>(steps[kStep % (kDepth + 1)], meta[kTurn % kWords]);
                });
                weight.template advance<1>();
            });
        ptx::wait_copies<0>();
        __syncthreads();  // the ring is free
#pragma unroll
        for (auto& sums : acc) Step::to_float(sums);
    }

    __device__ void write(const Prefill& p, int row_group, int first_token) {
        const Output<typename Step::Element> out{p.y, p.bias, p.M, p.N};
        const int token = first_token + token_warp * kTokenTiles * kTileTokens;
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
            const int row = row_group * kRows + r * 16;
            const auto bias = out.bias_of(row, lane);
#pragma unroll
            for (int n = 0; n < kTokenTiles; ++n) {
                auto& sums = reinterpret_cast<float (&)[4]>(acc[r * kTokenTiles + n]);
                Step::scale(sums, p, row, token + n * kTileTokens, lane);
                out.write(sums, bias, row, token + n * kTileTokens, lane);
            }
        }
    }
};

template <class Step, int kTokenWarps, int kTokenTiles>
__global__ void __launch_bounds__(kRowWarps * kTokenWarps * kLanes, kTokenWarps == 1 ? 2 : 1)
    sparse24_prefill_sm80_kernel(const __grid_constant__ Prefill p) {
    using W = Warp<Step, kTokenWarps, kTokenTiles>;
    __shared__ __align__(128) uint4 smem_x[kStages * W::kStageBytes / 16];
    W warp(smem_x);
    p.stripes.for_segments(blockIdx.x, [&](int tile, int column, int length) {
        const int token_block = tile / p.row_blocks;
        const int row_group = (tile - token_block * p.row_blocks) * kRowWarps + warp.row_warp;
        const int first_token = token_block * W::kTokens;
        warp.begin(p, row_group, first_token, column);
        warp.turns(length, row_group * kRows < p.N);
        auto& sums = reinterpret_cast<float4(&)[kRowTiles * kTokenTiles]>(warp.acc);
        if (combine<WholeBlock<W::kThreads>>(sums, p.stripes, tile, p.workspace))
            warp.write(p, row_group, first_token);
    });
}

}  // namespace prefill_sm80

template <class Step>
cudaError_t sparse24_prefill_sm80(const CudaProblem& problem, const PanelWeight& weight,
                                  const Sparse24Plan& plan) {
    using namespace prefill_sm80;
    const bool wide = plan.token_warps == 2;
    auto* kernel = plan.token_tiles == 4 ? (wide ? sparse24_prefill_sm80_kernel<Step, 2, 4>
                                                 : sparse24_prefill_sm80_kernel<Step, 1, 4>)
                                         : (wide ? sparse24_prefill_sm80_kernel<Step, 2, 8>
                                                 : sparse24_prefill_sm80_kernel<Step, 1, 8>);
    return launch(kernel, {plan.stripes.blocks, kRowWarps * plan.token_warps * kLanes},
                  problem.stream, arguments_of(problem, weight, plan));
}

}  // namespace prunekern
