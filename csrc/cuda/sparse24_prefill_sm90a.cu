// y[M,N] = x[M,K] W[N,K]^T + bias for many tokens on sm_90a, W 2:4 in panels
// (sparse24_fragments.h).
//
// A block makes 256 out features x 128 tokens of y^T. A producer thread brings x by TMA; each of
// two consumer warpgroups multiplies two row groups of W, from registers, by it:
//
//        K -->  a panel of 64 a turn
//   W  consumer 0 | 64 x 64 | --> registers, a turn ahead    a row group's four row tiles are
//                 | 64 x 64 |                                the A fragments of four warps
//      consumer 1 | 64 x 64 |
//                 | 64 x 64 |
//   x   128 tokens x 64  == TMA, swizzled ==> ring of kStages turns --> wgmma.sp m64n128k32
//
//   full[s]    the producer's expectation of bytes, ended by the copy
//   empty[s]   one arrival a consumer warpgroup, once wgmma is done with the stage
//
// Limit: a wgmma.sp m64n128k32 takes 64 clocks of the tensor cores (H100). On the data path of
// shared memory and L1, 128 bytes a clock, it reads 8 KB of x, 64 clocks; W from registers costs 18
// more, x's arrival, shared by four row groups, 16: 98 clocks, the data path binds at about two
// thirds of the sparse peak, 1.3 times dense. W by way of shared memory would add its writing and
// reading again.
#include <cuda.h>

#include "combine.cuh"
#include "launch.h"
#include "output.cuh"
#include "ptx.cuh"
#include "sparse24_arguments.h"

namespace prunekern {
namespace {

using namespace sparse24_fragments;

constexpr int kGroupThreads = 128, kConsumers = 2, kGroupsEach = 2;  // row groups of a consumer
constexpr int kRowGroups = kConsumers * kGroupsEach, kTokens = 128, kTokenTiles = kTokens / 8;
constexpr int kStages = 4, kStageBytes = kTokens * kColumns * 2;
constexpr int kSharedBytes = kStages * kStageBytes + 1024;  // to align it
static_assert(kRowGroups == kPrefillRowWarps);

using Prefill = Sparse24Arguments;  // with x as a tensor map beside

// Stages of the ring in turn, with the parity of the phase that they are in.
struct Turn {
    int stage = 0, parity = 0;
    __device__ void next() {
        if (++stage == kStages) stage = 0, parity ^= 1;
    }
};

struct Barriers {
    uint64_t full[kStages], empty[kStages];
    __device__ uint32_t full_of(int stage) { return ptx::shared_address(full + stage); }
    __device__ uint32_t empty_of(int stage) { return ptx::shared_address(empty + stage); }
};

__device__ void produce(const Prefill& p, const CUtensorMap& x, uint32_t ring, Barriers& barriers) {
    Turn turn;
    p.stripes.for_segments(blockIdx.x, [&](int tile, int column, int length) {
        const int first_token = tile / p.row_blocks * kTokens;
        for (int c = column; c < column + length; ++c, turn.next()) {
            ptx::wait_barrier(barriers.empty_of(turn.stage), turn.parity ^ 1);
            ptx::arrive_expecting(barriers.full_of(turn.stage), kStageBytes);
            ptx::load_box(ring + turn.stage * kStageBytes, &x, c * kColumns, first_token,
                          barriers.full_of(turn.stage));
        }
    });
}

struct Consumers {
    static constexpr int kThreads = kConsumers * kGroupThreads, kBarrier = 1;
    __device__ static int thread() { return threadIdx.x - kGroupThreads; }
    __device__ static void sync() { ptx::sync_some<kBarrier, kThreads>(); }
    __device__ static bool any(bool predicate) {
        return ptx::any_of_some<kBarrier, kThreads>(predicate);
    }
};

// A warp's part of one panel for each of its warpgroup's row groups.
struct Fragments {
    uint4 values[kGroupsEach][kSteps];
    uint32_t meta[kGroupsEach];
};

template <class Element>
struct Consumer {
    const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes % 4;
    const int first_group = Consumers::thread() / kGroupThreads * kGroupsEach;  // in the block
    const char* values[kGroupsEach];  // of the next panel of each row group, at this lane's place
    const char* meta[kGroupsEach];
    float acc[kGroupsEach][kTokenTiles * 4];

    __device__ void begin(const Prefill& p, int row_group, int column) {
#pragma unroll
        for (int g = 0; g < kGroupsEach; ++g) {
            // one beyond the last multiplies the last one's weights, and is not written
            const int group = min(row_group + g, (p.N + kRows - 1) / kRows - 1);
            const int64_t panel = int64_t{group} * p.stripes.column_tiles + column;
            values[g] = p.values + panel * kValuesBytes + (warp * kSteps * kLanes + lane) * 16;
            meta[g] = p.meta + panel * kMetaBytes + lane * 16 + warp * 4;
#pragma unroll
            for (float& sum : acc[g]) sum = 0;
        }
    }

    __device__ void load(Fragments& next) {
#pragma unroll
        for (int g = 0; g < kGroupsEach; ++g) {
            ptx::unrolled<kSteps>([&](auto step) {
                next.values[g][step.value] =
                    ptx::load_shared_by_many<step.value * kLanes * 16>(values[g]);
            });
            next.meta[g] = __ldg(reinterpret_cast<const uint32_t*>(meta[g]));
            values[g] += kValuesBytes, meta[g] += kMetaBytes;
        }
    }

    __device__ void issue(const Fragments& now, uint64_t x) {
        ptx::wgmma_fence();
        ptx::unrolled<kSteps>([&](auto step) {
            constexpr int kUnits = 32 * 2 / 16;  // of the descriptor, for a step's columns
#pragma unroll
            for (int g = 0; g < kGroupsEach; ++g)
                ptx::wgmma_sparse<step.value>(acc[g], now.values[g][step.value],
                                              x + step.value * kUnits, now.meta[g], Element{});
        });
        ptx::wgmma_commit();
    }

    // The products of `count` turns. A stage is given back, and a buffer of fragments filled again,
    // once the wgmma that read them is done: when the next one has been issued.
    __device__ void turns(int count, uint32_t ring, Barriers& barriers, Turn& turn) {
        const bool leader = threadIdx.x % kGroupThreads == 0;
        Fragments fragments[2];
        load(fragments[0]);
        int before = -1;
        for (int c = 0; c < count; c += 2)
            ptx::unrolled<2>([&](auto odd) {
                if (c + odd.value >= count) return;
                ptx::wait_barrier(barriers.full_of(turn.stage), turn.parity);
                issue(fragments[odd.value], ptx::tile_descriptor(ring + turn.stage * kStageBytes));
                ptx::wgmma_wait<1>();
                if (before >= 0 && leader) ptx::arrive(barriers.empty_of(before));
                before = turn.stage;
                turn.next();
                if (c + odd.value + 1 < count) load(fragments[1 - odd.value]);
            });
        ptx::wgmma_wait<0>();
        if (leader) ptx::arrive(barriers.empty_of(before));
    }

    __device__ void write(const Prefill& p, int row_group, int first_token) const {
        const Output<Element> out{p.y, p.bias, p.M, p.N};
#pragma unroll
        for (int g = 0; g < kGroupsEach; ++g) {
            const int row = (row_group + g) * kRows + warp * 16;
            const auto bias = out.bias_of(row, lane);
#pragma unroll
            for (int n = 0; n < kTokenTiles; ++n)
                out.write(reinterpret_cast<const float (&)[4]>(acc[g][4 * n]), bias, row,
                          first_token + n * kTileTokens, lane);
        }
    }
};

template <class Element>
__global__ void __launch_bounds__((1 + kConsumers) * kGroupThreads, 1)
    sparse24_prefill_sm90a_kernel(const __grid_constant__ CUtensorMap x,
                                  const __grid_constant__ Prefill p) {
    extern __shared__ uint8_t smem[];
    __shared__ Barriers barriers;
    const uint32_t ring = (ptx::shared_address(smem) + 1023) / 1024 * 1024;
    if (threadIdx.x == 0) {
        for (int s = 0; s < kStages; ++s) {
            ptx::init_barrier(barriers.full_of(s), 1);
            ptx::init_barrier(barriers.empty_of(s), kConsumers);
        }
        ptx::publish_barriers();
    }
    __syncthreads();
    if (threadIdx.x < kGroupThreads) {
        ptx::give_registers<24>();
        if (threadIdx.x == 0) produce(p, x, ring, barriers);
        return;
    }
    ptx::take_registers<240>();
    Consumer<Element> consumer;
    Turn turn;
    p.stripes.for_segments(blockIdx.x, [&](int tile, int column, int length) {
        const int token_block = tile / p.row_blocks;
        const int row_group =
            (tile - token_block * p.row_blocks) * kRowGroups + consumer.first_group;
        consumer.begin(p, row_group, column);
        consumer.turns(length, ring, barriers, turn);
        auto& sums = reinterpret_cast<float4(&)[kGroupsEach * kTokenTiles]>(consumer.acc);
        if (combine<Consumers>(sums, p.stripes, tile, p.workspace))
            consumer.write(p, row_group, token_block * kTokens);
    });
}

// x [M, K] in boxes of 128 tokens x 64 columns.
cudaError_t encode(CUtensorMap& map, const CudaProblem& problem) {
    static const auto encode_tiled = [] {
        void* function = nullptr;
        cudaDriverEntryPointQueryResult found;
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                         cudaEnableDefault, &found);
        return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
    }();
    if (!encode_tiled) return cudaErrorNotSupported;
    const cuuint64_t sizes[] = {static_cast<cuuint64_t>(problem.K),
                                static_cast<cuuint64_t>(problem.M)};
    const cuuint64_t stride[] = {static_cast<cuuint64_t>(problem.K) * 2};
    const cuuint32_t box[] = {kColumns, kTokens}, step[] = {1, 1};
    const auto type = problem.dtype == DType::kFloat16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                       : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    const CUresult status =
        encode_tiled(&map, type, 2, const_cast<void*>(problem.x), sizes, stride, box, step,
                     CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                     CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return status == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <class Element>
cudaError_t prefill(const CudaProblem& problem, const PanelWeight& weight,
                    const Sparse24Plan& plan) {
    CUtensorMap x;
    if (const cudaError_t error = encode(x, problem)) return error;
    return launch(sparse24_prefill_sm90a_kernel<Element>,
                  {plan.stripes.blocks, (1 + kConsumers) * kGroupThreads, kSharedBytes},
                  problem.stream, x, arguments_of(problem, weight, plan));
}

}  // namespace

cudaError_t sparse24_prepare_sm90a() {
    for (auto* kernel :
         {sparse24_prefill_sm90a_kernel<__half>, sparse24_prefill_sm90a_kernel<__nv_bfloat16>})
        if (const cudaError_t error = cudaFuncSetAttribute(
                kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes))
            return error;
    return cudaSuccess;
}

cudaError_t sparse24_linear_sm90a(const CudaProblem& problem, const PanelWeight& weight) {
    const Sparse24Plan plan = sparse24_plan(problem.M, problem.N, problem.K, problem.sms, true);
    // few tokens: memory binds, and the sm80 kernels serve
    if (plan.block_tokens() != kTokens) return sparse24_linear_sm80(problem, weight);
    return problem.dtype == DType::kFloat16 ? prefill<__half>(problem, weight, plan)
                                            : prefill<__nv_bfloat16>(problem, weight, plan);
}

}  // namespace prunekern
