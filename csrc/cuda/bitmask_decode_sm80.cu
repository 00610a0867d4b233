// y[M,N] = x[M,K] W[N,K]^T + bias for few tokens, M <= 16, W a bitmask in panels
// (bitmask_fragments.h).
//
// W is the operand A of dense mma.m16n8k16, tokens are its columns. A warp takes panels of 64 x 64
// one by one, and a block's warps take turns along K:
//
//        K -->  c     c+1    c+2    c+3    c+4 ...    values: cp.async to a warp's four slots, a
//     W  64  | w 0  | w 1  | w 2  | w 3  | w 0  ...     tile each; a slot is filled anew for the
//                                                       next panel as soon as its tile is expanded
//     bits, x    straight into registers, a panel ahead; offsets two panels ahead
//
// Slots hold full tiles, so that any density is right and nobody on the host knows it. There are no
// barriers in the loop, and a panel without values costs neither bits, x nor products. Blocks take
// equal stripes of all panels (stripes.h); parts are added in a fixed order (combine.cuh).
//
// Limit, counted at M = 8 and 4096 x 4096 in PTX: 200 instructions and no POPC for 1024 weights; 45
// wavefronts of shared memory at 50 % zeros and 42 at 70 %, without a conflict; beside those 18
// shuffles, which take the same path. Clocks of a multiprocessor for 1024 weights, 4 instructions
// or a wavefront each, against those in which its share of DRAM brings them:
//
//     zeros      instructions  wavefronts, shuffles    A100  H100  H200  RTX 4090
//     50 %       50            63                      87    80    56    366       memory, but H200
//     70 %       50            60                      56    52    36    238       the data path
//
// So memory binds at 50 % zeros but on an H200, whose data path takes 1.1 times as long; at 70 % on
// A100 and H100 the data path is 1.1 times as slow as memory, on an H200 1.7 times. A third of it
// are loads of 16 bits, two for each row and nibble: wider ones would read less often, but shift
// more, and in an order of values that has conflicts. By Little's law 12 (A100), 17 (H100), 24
// (H200), 5 (RTX 4090) KB must be in flight a multiprocessor; two blocks' 8 warps have 3 to 4 tiles
// of values and a panel's bits each, 28 to 36 at 50 % zeros.
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
constexpr int kWarps = kBitmaskDecodeWarps, kThreads = kWarps * kLanes;

// Where a panel's tiles start and where the last one ends, in units.
struct Bounds {
    int at[kTiles + 1];

    __device__ int units() const { return at[kTiles] - at[0]; }
};

template <class Element, int kTokenTiles>
struct Warp {
    static constexpr int kBytes = kUnitBytes + kTiles * kSlotBytes;  // of shared memory
    static constexpr int kXStride = kWarps * kColumns * 2;           // from panel to panel

    // What registers hold of a panel: bits, x as B fragments, and how much is kept.
    struct Panel {
        uint4 words, b[kTokenTiles][2];
        int units, of_tile[kTiles];
    };

    const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
    const uint64_t policy = ptx::evict_first_policy();
    const char* values;  // of all tiles, at this lane's first piece
    uint32_t slots;
    // Of the panel that is loaded next; offsets: of the one after it.
    const char *bitmask, *x[kTokenTiles];
    const int32_t* offsets;
    int left;  // bytes of x from there to the row's end
    float acc[kTiles][kTokenTiles][4];

    __device__ Warp(const BitmaskArguments& p, char* smem) {
        smem += warp * kBytes;
#pragma unroll
        for (int i = 0; i < kBytes / 16; i += kLanes)
            if (i + lane < kBytes / 16) reinterpret_cast<uint4*>(smem)[i + lane] = {};
        slots = ptx::shared_address(smem) + kUnitBytes;
        values = p.values + lane * kUnitBytes;
        __syncwarp();
    }

    // Of the panel that `offsets` points to, and on to the next.
    __device__ void load_bounds(Bounds& b, bool exists) {
        if (exists) {
            const uint4 starts = ptx::load_shared_by_many<0>(offsets);
            b = {{static_cast<int>(starts.x), static_cast<int>(starts.y),
                  static_cast<int>(starts.z), static_cast<int>(starts.w), __ldg(offsets + kTiles)}};
        } else {
            b = {};
        }
        offsets += kWarps * kTiles;
    }

    // Bits and x of the panel within these bounds, and on to the next. A lane's B fragments are 32
    // bytes of its token.
    __device__ void load(Panel& panel, const Bounds& bounds) {
        panel.units = bounds.units();
        if (panel.units > 0) {
            panel.words = ptx::load_streaming<0>(bitmask, policy);
#pragma unroll
            for (int n = 0; n < kTokenTiles; ++n) {
                if (left >= 32) {
                    panel.b[n][0] = ptx::load_shared_by_many<0>(x[n]);
                    panel.b[n][1] = ptx::load_shared_by_many<16>(x[n]);
                } else {
                    panel.b[n][0] = left > 0 ? ptx::load_shared_by_many<0>(x[n]) : uint4{};
                    panel.b[n][1] = {};
                }
            }
        }
        bitmask += kWarps * kBitmaskBytes, left -= kXStride;
#pragma unroll
        for (auto& row : x) row += kXStride;
    }

    template <int kTile>
    __device__ void copy_values(Panel& panel, const Bounds& bounds) const {
        const int first = bounds.at[kTile], units = bounds.at[kTile + 1] - first;
        panel.of_tile[kTile] = units;
        const char* from = values + int64_t{first} * kUnitBytes;
        ptx::unrolled<kTileBytes / kUnitBytes / kLanes>([&](auto i) {
            constexpr int kTo = i.value * kLanes * kUnitBytes;
            ptx::copy_streaming_if<kTile * kSlotBytes + kTo, kTo, i.value * kLanes>(
                slots + lane * kUnitBytes, from, units - lane, policy);
        });
        ptx::commit_copies();
    }

    // The products of so many panels, every kWarps-th from `panel` on, which begins at `column`.
    __device__ void multiply(const BitmaskArguments& p, int64_t panel, int column, int panels) {
#pragma unroll
        for (int i = 0; i < kTiles * kTokenTiles * 4; ++i) (&acc[0][0][0])[i] = 0;
        bitmask = p.bitmask + panel * kBitmaskBytes + lane * kLaneWordBytes;
        offsets = p.offsets + panel * kTiles;
        const int piece = (column + lane % 4 * kLaneColumns) * 2;
        left = p.K * 2 - piece;
#pragma unroll
        for (int n = 0; n < kTokenTiles; ++n) {
            // of a token that does not exist: the last one's, for a column that nobody writes
            const int token = min(n * kTileTokens + lane / 4, p.M - 1);
            x[n] = static_cast<const char*>(p.x) + int64_t{token} * p.K * 2 + piece;
            ptx::keep(x[n]);
        }
        Panel ring[2];
        Bounds bounds[2];
        load_bounds(bounds[0], panels > 0), load_bounds(bounds[1], panels > 1);
        load(ring[0], bounds[0]);
        ptx::unrolled<kTiles>([&](auto tile) { copy_values<tile.value>(ring[0], bounds[0]); });
        load_bounds(bounds[0], panels > 2);
        for (; panels > 0; panels -= 2)
            ptx::unrolled<2>([&](auto s) {
                constexpr int kThis = s.value, kNext = 1 - kThis;
                if (kThis >= panels) return;
                const Panel& own = ring[kThis];
                load(ring[kNext], bounds[kNext]);
                Tile tiles[kTiles];
                if (own.units > 0)
                    count({own.words.x, own.words.y, own.words.z, own.words.w}, tiles);
                ptx::unrolled<kTiles>([&](auto t) {
                    constexpr int kTile = t.value;
                    ptx::wait_copies<kTiles - 1>();
                    __syncwarp();  // the copies of all lanes
                    if (own.of_tile[kTile] > 0) {
                        uint4 a[kSteps];
                        expand(tiles[kTile], slots + kTile * kSlotBytes, a);
#pragma unroll
                        for (int n = 0; n < kTokenTiles; ++n) {
                            const uint4(&b)[2] = own.b[n];
                            ptx::mma(acc[kTile][n], a[0], b[0].x, b[0].y, Element{});
                            ptx::mma(acc[kTile][n], a[1], b[0].z, b[0].w, Element{});
                            ptx::mma(acc[kTile][n], a[2], b[1].x, b[1].y, Element{});
                            ptx::mma(acc[kTile][n], a[3], b[1].z, b[1].w, Element{});
                        }
                    }
                    __syncwarp();  // the slot is free
                    copy_values<kTile>(ring[kNext], bounds[kNext]);
                });
                load_bounds(bounds[kNext], panels > kThis + 3);
            });
        ptx::wait_copies<0>();
    }
};

template <class Element, int kTokenTiles>
__global__ void __launch_bounds__(kThreads, kBitmaskDecodeBlocksPerSm)
    bitmask_decode_sm80_kernel(const __grid_constant__ BitmaskArguments p) {
    using W = Warp<Element, kTokenTiles>;
    constexpr int kSums = kTiles * kTokenTiles;
    __shared__ __align__(128) char smem[kWarps * W::kBytes];
    static_assert(sizeof smem >= kWarps * kSums * kLanes * sizeof(float4));
    W warp(p, smem);
    const Output<Element> out{p.y, p.bias, p.M, p.N};
    p.stripes.for_segments(blockIdx.x, [&](int row_group, int column, int length) {
        const int64_t panel = int64_t{row_group} * p.stripes.column_tiles + column + warp.warp;
        warp.multiply(p, panel, (column + warp.warp) * kColumns,
                      (length - warp.warp + kWarps - 1) / kWarps);
        float4 sums[kSums / kWarps];
        add_warps<kWarps>(reinterpret_cast<float (&)[kSums][4]>(warp.acc), sums,
                          reinterpret_cast<float4*>(smem));
        __syncthreads();  // shared memory is free for the next segment's copies
        if (!combine<WholeBlock<kThreads>>(sums, p.stripes, row_group, p.workspace)) return;
#pragma unroll
        for (int i = 0; i < kSums / kWarps; ++i) {
            const int tile = i * kWarps + warp.warp;
            const int row = row_group * kRows + tile / kTokenTiles * kTileRows;
            out.write(reinterpret_cast<const float (&)[4]>(sums[i]), out.bias_of(row, warp.lane),
                      row, tile % kTokenTiles * kTileTokens, warp.lane);
        }
    });
}

}  // namespace

template <class Element>
cudaError_t bitmask_decode_sm80(const CudaProblem& problem, const BitmaskPanels& weight,
                                const BitmaskPlan& plan) {
    auto* kernel = plan.token_tiles == 1 ? bitmask_decode_sm80_kernel<Element, 1>
                                         : bitmask_decode_sm80_kernel<Element, 2>;
    return launch(kernel, {plan.stripes.blocks, kThreads}, problem.stream,
                  arguments_of(problem, weight, plan));
}
template cudaError_t bitmask_decode_sm80<__half>(const CudaProblem&, const BitmaskPanels&,
                                                 const BitmaskPlan&);
template cudaError_t bitmask_decode_sm80<__nv_bfloat16>(const CudaProblem&, const BitmaskPanels&,
                                                        const BitmaskPlan&);

}  // namespace prunekern
