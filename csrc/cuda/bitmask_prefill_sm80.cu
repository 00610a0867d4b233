// y[M,N] = x[M,K] W[N,K]^T + bias for many tokens, W a bitmask in panels (bitmask_fragments.h).
//
// A block makes 128 out features x 32, 64 or 128 tokens of y^T, a warp 32 features of all of them:
//
//         K -->  a panel's columns a turn        values: cp.async to a warp's own slots, two turns
//   W  w0 |  32 x 64  |                             ahead; from there expanded into registers
//      w1 |  32 x 64  | --> slots --> registers  x: cp.async to a ring of kStages turns in shared
//      w2 |  32 x 64  |                             memory that all four warps read
//      w3 |  32 x 64  |
//   x   tokens x 64   --> ring --> a lane's B fragments of four steps are 32 bytes of its token
//
// x in shared memory: 128 bytes a token and turn, its 16-byte pieces in the order piece ^ (token %
// 8): copies and loads are without conflicts.
//
// Limit: the tensor core takes a mma m16n8k16 in 2 clocks of a multiprocessor (A100), the data path
// moves a wavefront of 128 bytes a clock. For a warp's 128 mma of a turn at 128 tokens: 128
// wavefronts of x, its share of 32 of the copies, and at half density 2 x 41 of two expanded tiles:
// counted 1.91 a mma and 5.2 instructions, of 8 that there is time for. Shuffles take the same
// path: with their 0.31 it is 2.2, a tenth above the tensor core. W expanded once for all warps by
// way of shared memory would not gain: what it saves in expansion it moves as fragments. From 64
// tokens down bytes of W bind.
#include "bitmask_arguments.h"
#include "bitmask_expand.cuh"
#include "combine.cuh"
#include "launch.h"
#include "output.cuh"
#include "ptx.cuh"

namespace prunekern {
namespace {

using namespace bitmask_fragments;

constexpr int kTileTokens = kBitmaskTileTokens;
constexpr int kWarps = kPrefillWarps, kThreads = kWarps * kLanes, kStages = 3, kSlotStages = 2;
constexpr int kWarpTiles = kPrefillRows / kWarps / kTileRows;
constexpr int kTurnSlotBytes = kWarpTiles * kSlotBytes;
constexpr int kSlotsBytes = kUnitBytes + kSlotStages * kTurnSlotBytes;  // of a warp
static_assert(kWarpTiles == 2);

// Where a warp's tiles of a panel start and the last one ends, in units.
struct Bounds {
    int at[kWarpTiles + 1];

    __device__ int units() const { return at[kWarpTiles] - at[0]; }
};

template <class Element, int kTokenTiles>
struct Warp {
    static constexpr int kTokens = kTokenTiles * kTileTokens;
    static constexpr int kStageBytes = kTokens * 128;
    static constexpr int kCopies = kTokens * 8 / kThreads;  // of a turn's x, a thread
    static constexpr int kCopyTokens = kThreads / 8;        // that one round of copies serves
    static constexpr int kTurnBytes = kColumns * 2;         // of a row of x
    static constexpr int kSharedBytes = kStages * kStageBytes + kWarps * kSlotsBytes;

    const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
    int64_t panel;     // whose bounds are loaded next
    const char* x;     // this thread's piece of the next turn, of its first token
    int tokens, left;  // that there are from that one on; bytes to the end of x's row
    uint32_t slots, copy_to, read_from;
    float acc[kWarpTiles * kTokenTiles][4];

    __device__ Warp(const BitmaskArguments& p, char* smem) {
        char* own = smem + kStages * kStageBytes + warp * kSlotsBytes;
#pragma unroll
        for (int i = 0; i < kSlotsBytes / 16; i += kLanes)
            if (i + lane < kSlotsBytes / 16) reinterpret_cast<uint4*>(own)[i + lane] = {};
        slots = ptx::shared_address(own) + kUnitBytes;
        const uint32_t ring = ptx::shared_address(smem);
        const int token = threadIdx.x / 8, piece = threadIdx.x % 8;
        copy_to = ring + token * 128 + (piece ^ token % 8) * 16;
        read_from = ring + lane / 4 * 128 + (lane % 4 * 2 ^ lane / 4) * 16;
        __syncwarp();
    }

    // To the column tile that begins at `column`, of the row group and of the block's tokens.
    __device__ void begin(const BitmaskArguments& p, int row_group, int first_token, int column) {
        panel = int64_t{row_group} * p.stripes.column_tiles + column / kColumns;
        const int token = first_token + threadIdx.x / 8;
        const int piece = (column + threadIdx.x % 8 * 8) * 2;
        left = p.K * 2 - piece;
        x = static_cast<const char*>(p.x) + int64_t{token} * p.K * 2 + piece;
        tokens = p.M - token;
#pragma unroll
        for (auto& sums : acc) sums[0] = sums[1] = sums[2] = sums[3] = 0;
    }

    // Of the warp's two tiles in a panel.
    __device__ int first_tile() const { return warp % 2 * kWarpTiles; }

    __device__ Bounds next_bounds(const BitmaskArguments& p, bool exists) {
        Bounds b = {};
        const int32_t* at = p.offsets + panel++ * kTiles + first_tile();
        if (exists) b = {__ldg(at), __ldg(at + 1), __ldg(at + 2)};
        return b;
    }

    // Of the panel so many before that of the next bounds.
    __device__ void load_words(const BitmaskArguments& p, uint2& words, int units,
                               int before) const {
        if (units > 0)
            words = ptx::load_pair_shared_by_many(p.bitmask + (panel - before) * kBitmaskBytes +
                                                  lane * kLaneWordBytes + first_tile() * 4);
    }

    __device__ void copy_values(const BitmaskArguments& p, const Bounds& bounds,
                                uint32_t stage) const {
        const uint32_t to = slots + stage + lane * kUnitBytes;
        ptx::unrolled<kWarpTiles>([&](auto tile) {
            const int first = bounds.at[tile.value], units = bounds.at[tile.value + 1] - first;
            const char* from = p.values + (int64_t{first} + lane) * kUnitBytes;
            ptx::unrolled<kTileBytes / kUnitBytes / kLanes>([&](auto i) {
                constexpr int kTo = i.value * kLanes * kUnitBytes;
                ptx::copy_if<tile.value * kSlotBytes + kTo, kTo, i.value * kLanes>(to, from,
                                                                                   units - lane);
            });
        });
    }

    __device__ void copy_x(const BitmaskArguments& p, uint32_t stage) {
        const int inside = left > 0 ? tokens : 0;
        const char* from = x;
        ptx::unrolled<kCopies>([&](auto i) {
            // kCopyTokens is a multiple of 8: the order of the pieces is the same
            ptx::copy_async<i.value * kCopyTokens * 128, 0>(
                copy_to + stage, from, inside > i.value * kCopyTokens ? 16 : 0);
            from += int64_t{kCopyTokens} * p.K * 2;
        });
        x += kTurnBytes, left -= kTurnBytes;
    }

    __device__ static void expand_word(uint32_t word, uint32_t slot, uint4 (&fragments)[kSteps]) {
        Tile tile[1];
        count({word}, tile);
        expand(tile[0], slot, fragments);
    }

    __device__ void multiply(const uint4 (&a)[kWarpTiles][kSteps], uint32_t stage) {
        const uint32_t rows[] = {read_from + stage, (read_from + stage) ^ 16};  // by pieces
        ptx::unrolled<kTokenTiles>([&](auto n) {
            const uint4 b[] = {ptx::load_quad<n.value * 1024>(rows[0]),
                               ptx::load_quad<n.value * 1024>(rows[1])};
#pragma unroll
            for (int tile = 0; tile < kWarpTiles; ++tile) {
                auto& sums = acc[tile * kTokenTiles + n.value];
                ptx::mma(sums, a[tile][0], b[0].x, b[0].y, Element{});
                ptx::mma(sums, a[tile][1], b[0].z, b[0].w, Element{});
                ptx::mma(sums, a[tile][2], b[1].x, b[1].y, Element{});
                ptx::mma(sums, a[tile][3], b[1].z, b[1].w, Element{});
            }
        });
    }

    // The products of `count` column tiles from begin() on. Warps beyond the last row group copy x
    // and wait with the others.
    __device__ void turns(const BitmaskArguments& p, int count, bool exists) {
        uint2 words = {};
        Bounds bounds = next_bounds(p, exists);
        int units = bounds.units();
        load_words(p, words, units, 1);
        copy_values(p, bounds, 0), copy_x(p, 0), ptx::commit_copies();
        bounds = next_bounds(p, exists && count > 1);
        int next_units = bounds.units();
        if (count > 1) copy_x(p, kStageBytes);
        copy_values(p, bounds, kTurnSlotBytes), ptx::commit_copies();
        uint32_t stage = 0, slot = 0;  // of this turn, as bytes from the first
        for (; count > 0; --count) {
            bounds = next_bounds(p, exists && count > 2);
            ptx::wait_copies<1>();
            __syncthreads();  // everyone's copies of this turn; and the turn before is done
            if (count > 2)
                copy_x(p, stage == 0 ? (kStages - 1) * kStageBytes : stage - kStageBytes);
            uint4 a[kWarpTiles][kSteps];
            // One after the other: side by side they would need more registers than there are.
            if (units > 0) expand_word(words.x, slots + slot, a[0]);
            ptx::keep(units);
            if (units > 0) expand_word(words.y, slots + slot + kSlotBytes, a[1]);
            __syncwarp();  // the slots are free
            copy_values(p, bounds, slot);
            ptx::commit_copies();
            load_words(p, words, next_units, 2);
            if (units > 0) multiply(a, stage);
            units = next_units, next_units = bounds.units();
            slot = kTurnSlotBytes - slot;
            stage = stage == (kStages - 1) * kStageBytes ? 0 : stage + kStageBytes;
        }
        ptx::wait_copies<0>();
        __syncthreads();  // the ring is free
    }

    __device__ void write(const BitmaskArguments& p, int row_group, int first_token) const {
        const Output<Element> out{p.y, p.bias, p.M, p.N};
#pragma unroll
        for (int tile = 0; tile < kWarpTiles; ++tile) {
            const int row = row_group * kRows + (warp % 2 * kWarpTiles + tile) * kTileRows;
            const auto bias = out.bias_of(row, lane);
#pragma unroll
            for (int n = 0; n < kTokenTiles; ++n)
                out.write(acc[tile * kTokenTiles + n], bias, row, first_token + n * kTileTokens,
                          lane);
        }
    }
};

template <class Element, int kTokenTiles>
__global__ void __launch_bounds__(kThreads, kPrefillBlocksPerSm)
    bitmask_prefill_sm80_kernel(const __grid_constant__ BitmaskArguments p) {
    using W = Warp<Element, kTokenTiles>;
    extern __shared__ __align__(128) char smem[];
    W warp(p, smem);
    p.stripes.for_segments(blockIdx.x, [&](int tile, int column, int length) {
        const int token_block = tile / p.row_blocks;
        const int row_block = tile - token_block * p.row_blocks;
        const int row_group = row_block * (kPrefillRows / kRows) + warp.warp / 2;
        const int first_token = token_block * W::kTokens;
        warp.begin(p, row_group, first_token, column * kColumns);
        warp.turns(p, length, row_group * kRows < p.N);
        auto& sums = reinterpret_cast<float4(&)[kWarpTiles * kTokenTiles]>(warp.acc);
        if (combine<WholeBlock<kThreads>>(sums, p.stripes, tile, p.workspace))
            warp.write(p, row_group, first_token);
    });
}

template <class Element, int kTokenTiles>
cudaError_t prepare() {
    return cudaFuncSetAttribute(bitmask_prefill_sm80_kernel<Element, kTokenTiles>,
                                cudaFuncAttributeMaxDynamicSharedMemorySize,
                                Warp<Element, kTokenTiles>::kSharedBytes);
}

template <class Element, int kTokenTiles>
cudaError_t prefill(const CudaProblem& problem, const BitmaskArguments& arguments) {
    return launch(bitmask_prefill_sm80_kernel<Element, kTokenTiles>,
                  {arguments.stripes.blocks, kThreads, Warp<Element, kTokenTiles>::kSharedBytes},
                  problem.stream, arguments);
}

}  // namespace

cudaError_t bitmask_prepare_sm80() {
    for (auto* prepare_one :
         {prepare<__half, 4>, prepare<__half, 8>, prepare<__half, 16>, prepare<__nv_bfloat16, 4>,
          prepare<__nv_bfloat16, 8>, prepare<__nv_bfloat16, 16>})
        if (const cudaError_t error = prepare_one()) return error;
    return cudaSuccess;
}

template <class Element>
cudaError_t bitmask_prefill_sm80(const CudaProblem& problem, const BitmaskPanels& weight,
                                 const BitmaskPlan& plan) {
    const BitmaskArguments arguments = arguments_of(problem, weight, plan);
    if (plan.token_tiles == 4) return prefill<Element, 4>(problem, arguments);
    return plan.token_tiles == 8 ? prefill<Element, 8>(problem, arguments)
                                 : prefill<Element, 16>(problem, arguments);
}
template cudaError_t bitmask_prefill_sm80<__half>(const CudaProblem&, const BitmaskPanels&,
                                                  const BitmaskPlan&);
template cudaError_t bitmask_prefill_sm80<__nv_bfloat16>(const CudaProblem&, const BitmaskPanels&,
                                                         const BitmaskPlan&);

}  // namespace prunekern
