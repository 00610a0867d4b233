// y[M,N] = x[M,K] W[N,K]^T + bias, W in compressed sparse rows of any pattern: FMAs, fp32 sums.
//
// W lies as prunekern/layouts/csr_simt.py draws it: in slices of 2048 columns, in strips of 8 rows
// of neighbouring length; a strip within a slice is a tile. A warp takes a tile step by step:
//
//   lanes  0 ..  3   row 0  | 8 entries a lane: 16 bytes of columns, 16 of values (fp32: 32), past
//   lanes  4 ..  7   row 1  | L1 into registers; the next two steps' are in flight meanwhile
//     ...
//   x in shared memory      column k: 1, 2, 4 or 8 tokens beside each other, up to 16 bytes: one
//                           load an entry serves the whole tile of tokens
//   units  |step|step|step|end|step|step|end|step|end| ...     tile by tile, slice by slice
//   warps  |------ 0 -----|------ 1 -----|------ 2 -----|      equal shares for any pattern
//
// Sixteen warps are a block, which stages its slice of x, and a multiprocessor has one. A warp
// leaves its sums of a tile in the slot warp + tile of the workspace; a counter for each strip
// collects the units done, and who brings it to all adds the strip's parts in the order of slices
// and warps: results do not depend on the order of blocks. Above 8 tokens (fp32: 4) tiles of tokens
// run side by side, each on its part of the multiprocessors: W comes from DRAM once and from L2
// once a tile. More than 16 tiles take another launch.
//
// Padding: rows of a tile are whole sectors, 7.5 entries more than they have: 3.7 % of the 205 of a
// row of 4096 with 90 % zeros. Read as they fall, from the sector's start and masked, they would
// touch 440 bytes for 410, 7.3 %. Slices: a block stages 16 bytes a column at 8 tokens, 32 KB;
// twice as wide ones would pad half as much and stage, in all blocks, as many bytes as W has.
//
// Limit: W's bytes, 4 a kept weight, 4.2 with padding and tables at 90 % zeros. Counted there with
// 4096 x 4096 weights (tests/test_cuda_csr_counters.py), an entry's share of an A100's clocks:
//
//                      M = 1    M = 8
//   DRAM               0.31     0.32     13.4 bytes a clock and multiprocessor
//   issue              0.19     0.36     less moves; PTX, which has more than the machine code
//   shared memory, L1  0.14     0.24     a random column's bank: 3 wavefronts for 32 lanes, not 1;
//                                        at 8 tokens 1.5 for 8, as entries are in an order that
//                                        spares conflicts: 2.6 without it
//
// So DRAM binds at one token, and on chips with less of it (RTX 4090: 1.3 clocks an entry) up to
// 16; on an A100 issue catches up at 8: of 20 instructions an entry and lane, 16 are the eight
// conversions and FMAs. Beyond, time grows by tiles of tokens and a dense product on tensor cores
// soon wins: this is no kernel for prefill.
#include "csr_simt.h"

#include "combine.cuh"
#include "elements.cuh"
#include "launch.h"
#include "ptx.cuh"

namespace prunekern {
namespace {

using namespace csr_simt;

constexpr int kLanes = 32, kThreads = kWarps * kLanes;
constexpr int kRowLanes = kLanes / kStripRows;  // of a row of W
constexpr int kZeroColumns = 8;                 // of x, behind a slice's: what padding refers to

struct Csr {
    const char* values;
    const uint4* columns;
    const int *rows, *tile_starts, *strip_starts, *occupied, *unit_pairs, *unit_tiles;
    const uint32_t* unit_maps;
    const char* x;
    void* y;
    const void* bias;  // or null
    int M, N, K, slices, strips;
    int token_tiles, group;
    Shares shares;
    int64_t slots;
    bool words;  // whether each token's part of x consists of whole words
    int* counters;
    float* parts;
};

// A column of x: the elements of a tile's tokens beside each other.
template <int kBytes>
struct Bytes;
template <>
struct Bytes<2> {
    using Type = uint16_t;
};
template <>
struct Bytes<4> {
    using Type = uint32_t;
};
template <>
struct Bytes<8> {
    using Type = uint2;
};
template <>
struct Bytes<16> {
    using Type = uint4;
};
template <class Element, int kTokens>
using Column = typename Bytes<sizeof(Element) * kTokens>::Type;

// A lane's entries of a unit.
template <class Element>
struct Vector {
    static constexpr int kPieces = sizeof(Element) * kVector / 16;
    // Of the unit: bit i, whether lanes 2 i and 2 i + 1 have entries; 0: a tile's end.
    uint32_t map;
    uint4 columns, values[kPieces];
};

// An element of y, whose row is that of a place in the order of lengths.
template <class Element>
__device__ void write(const Csr& p, int place, int token, float sum) {
    const int row = p.rows[place];
    if (row >= p.N || token >= p.M) return;
    if (p.bias) sum += to_float(static_cast<const Element*>(p.bias)[row]);
    static_cast<Element*>(p.y)[int64_t{token} * p.N + row] = from_float<Element>(sum);
}

template <class Element, int kTokens>
struct Warp {
    static constexpr int kOwn = kTokens < kRowLanes ? 1 : kTokens / kRowLanes;  // sums of a lane
    static constexpr int kPart = kStripRows * kTokens;                          // of a tile
    static constexpr int kHolders = kPart / kOwn;  // lanes that write a strip of y
    static constexpr int kPairBytes = kPair * sizeof(Element);

    const Csr& p;
    const Column<Element, kTokens>* smem_x;
    const int lane = threadIdx.x % kLanes, token, warp;
    const uint32_t begin, end;  // its share
    float* parts;
    // Of the next unit to fetch; pointers at its first entry, an odd lane's half a pair later.
    uint32_t fetched, map = 0;
    const char* values;
    const uint4* columns;
    // Of the next unit to multiply.
    int tile = 0;
    bool begun = false;  // acc has sums of it
    float acc[kTokens] = {};

    __device__ Warp(const Csr& csr, const Column<Element, kTokens>* x, int token_tile, int index)
        : p(csr), smem_x(x), token(token_tile * kTokens), warp(index),
          begin(csr.shares.begin(index)), end(csr.shares.begin(index + 1)),
          parts(csr.parts + token_tile * csr.slots * kPart), fetched(begin) {
        if (begin == end) return;
        const int64_t pair = p.unit_pairs[begin];
        map = p.unit_maps[begin], tile = p.unit_tiles[begin];
        values = p.values + pair * kPairBytes + lane % 2 * 16;
        columns = p.columns + pair * 2 + lane % 2;
    }

    // The next unit's entries. Where a lane has none: zeros, and x's zero columns.
    __device__ void fetch(Vector<Element>& v) {
        v.map = map;
        const uint32_t own = 1u << lane / 2;
        if (map & own) {
            const int pair = __popc(map & (own - 1));
            ptx::unrolled<Vector<Element>::kPieces>([&](auto i) {
                v.values[i.value] = ptx::load_once<i.value * 32>(values + pair * kPairBytes);
            });
            v.columns = ptx::load_once<0>(columns + pair * 2);
        } else {
            const uint32_t zero_columns = (kSlice + lane % kZeroColumns) * 0x00010001u;
            for (uint4& piece : v.values) piece = make_uint4(0, 0, 0, 0);
            v.columns = make_uint4(zero_columns, zero_columns, zero_columns, zero_columns);
        }
        const int pairs = __popc(map);
        values += pairs * kPairBytes, columns += pairs * 2;
        map = ++fetched < end ? p.unit_maps[fetched] : 0;
    }

    __device__ void multiply(const Vector<Element>& v) {
        const auto* columns_of = reinterpret_cast<const uint16_t*>(&v.columns);
        const auto* values_of = reinterpret_cast<const Element*>(v.values);
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
            const Column<Element, kTokens> column = smem_x[columns_of[i]];
            const auto* x = reinterpret_cast<const Element*>(&column);
            const float value = to_float(values_of[i]);
#pragma unroll
            for (int t = 0; t < kTokens; ++t) acc[t] = fmaf(value, to_float(x[t]), acc[t]);
        }
    }

    // Adds the first kCount sums of lanes kApart apart: each keeps half of them, or the only one.
    template <int kCount, int kApart>
    __device__ void add_lanes() {
        if constexpr (kCount == 1) {
            acc[0] += __shfl_xor_sync(~0u, acc[0], kApart);
        } else {
            const bool upper = lane & kApart;
#pragma unroll
            for (int i = 0; i < kCount / 2; ++i) {
                const float low = acc[i], high = acc[i + kCount / 2];
                acc[i] = (upper ? high : low) + __shfl_xor_sync(~0u, upper ? low : high, kApart);
            }
        }
    }

    // Leaves the sums of this warp's part of `tile` in its slot. From part to part either number
    // grows, so that their sum is no other part's.
    __device__ void leave_part() {
        static_assert(kRowLanes == 4, "lanes that differ in two bits");
        add_lanes<kTokens, 2>();
        add_lanes<(kTokens + 1) / 2, 1>();
        const int first = lane % kRowLanes * kTokens;  // of a lane's tokens, times kRowLanes
        if (first % kRowLanes == 0) {
            float* to = parts + int64_t{warp + tile} * kPart + lane / kRowLanes * kTokens +
                        first / kRowLanes;
            if constexpr (kOwn == 2)
                *reinterpret_cast<float2*>(to) = make_float2(acc[0], acc[1]);
            else
                *to = acc[0];
        }
        for (float& sum : acc) sum = 0;
        begun = false;
    }

    __device__ void consume(const Vector<Element>& v, uint32_t unit) {
        if (v.map != 0) {
            multiply(v);
            begun = true;
        } else {
            if (begun) leave_part();
            if (unit + 1 < end) tile = p.unit_tiles[unit + 1];
        }
    }

    // Adds the parts of a strip in the order of slices and warps and writes its rows of y: by
    // kHolders lanes, so that a warp does several at once where tokens are few.
    __device__ void finish(int strip) const {
        const int own = lane % kHolders * kOwn;  // of kPart
        float sums[kOwn] = {};
        for (int slice = 0; slice < p.slices; ++slice) {
            const int t = slice * p.strips + strip;
            const int first_step = p.tile_starts[t], last_step = p.tile_starts[t + 1] - 2;
            if (last_step < first_step) continue;
            int w = p.shares.warp_of(first_step);
            do {
                const float* part = parts + int64_t{w + t} * kPart + own;
                if constexpr (kOwn == 2) {
                    const float2 two = ptx::load_from_l2(reinterpret_cast<const float2*>(part));
                    sums[0] += two.x, sums[1] += two.y;
                } else {
                    sums[0] += ptx::load_from_l2(part);
                }
            } while (p.shares.begin(++w) <= last_step);
        }
#pragma unroll
        for (int i = 0; i < kOwn; ++i)
            write<Element>(p, strip * kStripRows + own / kTokens, token + own % kTokens + i,
                           sums[i]);
    }

    // Counts this warp's units of the tiles first .. last; who brings a group of strips to all of
    // its units finishes them.
    __device__ void arrive(int first, int last, int* counters) const {
        __threadfence();
        __syncwarp();
        for (int base = first; base <= last; base += kLanes) {
            const int t = base + lane;
            int group = 0;
            bool complete = false;
            if (t <= last) {
                group = t % p.strips / p.group;
                const int units = min(static_cast<int>(end), p.tile_starts[t + 1]) -
                                  max(static_cast<int>(begin), p.tile_starts[t]);
                const int all = p.strip_starts[min((group + 1) * p.group, p.strips)] -
                                p.strip_starts[group * p.group];
                complete = units > 0 && atomicAdd(counters + group, units) + units == all;
                if (complete) __threadfence();  // parts of others are read after this
            }
            for (uint32_t left = __ballot_sync(~0u, complete); left != 0;) {
                uint32_t mine = left;
#pragma unroll
                for (int i = 0; i < kLanes / kHolders; ++i) {
                    if (i < lane / kHolders) mine &= mine - 1;
                    left &= left - 1;
                }
                const int done = __shfl_sync(~0u, group, __ffs(mine | 1u << 31) - 1);
                if (mine != 0) {
                    if (lane % kHolders == 0) counters[done] = 0;
                    const int after = min((done + 1) * p.group, p.strips);
                    for (int strip = done * p.group; strip < after; ++strip) finish(strip);
                }
                __syncwarp();
            }
        }
    }
};

// Rows without entries, which are behind all others: by all threads of the token tile's blocks.
template <class Element>
__device__ void write_empty_rows(const Csr& p, int first_token, int tokens, int block) {
    const int first = *p.occupied * kStripRows, count = p.strips * kStripRows - first;
    const int threads = gridDim.x / p.token_tiles * kThreads;
    for (int token = first_token; token < first_token + tokens; ++token)
        for (int i = block * kThreads + threadIdx.x; i < count; i += threads)
            write<Element>(p, first + i, token, 0);
}

// A slice's columns of x to shared memory, zeros for tokens beyond M. A thread takes the columns
// that a word of x has.
template <class Element, int kTokens>
__device__ void stage_x(const Csr& p, int slice, int token, Column<Element, kTokens>* smem_x) {
    using C = Column<Element, kTokens>;
    constexpr int kWide = 4 / sizeof(Element);
    const int first = slice * kSlice, width = min(kSlice, p.K - first), tokens = p.M - token;
    const int64_t stride = p.K * int64_t{sizeof(Element)};
    // Half of the lanes store their second column first: neighbours' first columns would meet in
    // half of the banks.
    const bool swap = (threadIdx.x * kWide * sizeof(C) & 128) != 0;
    const uint32_t lows = 0x5410, highs = 0x7632;
    for (int c = threadIdx.x * kWide; c < width; c += kThreads * kWide) {
        const char* from = p.x + token * stride + (first + c) * int64_t{sizeof(Element)};
        uint32_t word[kTokens] = {};
#pragma unroll
        for (int t = 0; t < kTokens; ++t, from += stride) {
            if (t >= tokens) break;
            if (p.words) {
                word[t] = *reinterpret_cast<const uint32_t*>(from);
            } else {
                const auto* x = reinterpret_cast<const uint16_t*>(from);
                word[t] = x[0] | (c + 1 < width ? x[1] << 16 : 0);
            }
        }
        if constexpr (kWide == 1 || kTokens == 1) {
            using Word = typename Bytes<4 * kTokens>::Type;
            *reinterpret_cast<Word*>(smem_x + c) = *reinterpret_cast<const Word*>(word);
        } else {
            uint32_t column[2][kTokens / 2];
#pragma unroll
            for (int i = 0; i < kTokens / 2; ++i) {
                column[0][i] = __byte_perm(word[2 * i], word[2 * i + 1], swap ? highs : lows);
                column[1][i] = __byte_perm(word[2 * i], word[2 * i + 1], swap ? lows : highs);
            }
            smem_x[c + swap] = *reinterpret_cast<const C*>(column[0]);
            smem_x[c + !swap] = *reinterpret_cast<const C*>(column[1]);
        }
    }
}

template <class Element, int kTokens>
__global__ void __launch_bounds__(kThreads, 1) csr_simt_kernel(const __grid_constant__ Csr p) {
    using C = Column<Element, kTokens>;
    __shared__ __align__(16) C smem_x[kSlice + kZeroColumns];
    const int token_tile = blockIdx.x % p.token_tiles, block = blockIdx.x / p.token_tiles;
    write_empty_rows<Element>(p, token_tile * kTokens, kTokens, block);
    const uint32_t block_begin = p.shares.begin(block * kWarps),
                   block_end = p.shares.begin((block + 1) * kWarps);
    if (block_begin == block_end) return;
    Warp<Element, kTokens> warp(p, smem_x, token_tile, block * kWarps + threadIdx.x / kLanes);
    const int first_tile = warp.tile;

    Vector<Element> vectors[2];
    warp.fetch(vectors[0]);
    warp.fetch(vectors[1]);
    if (threadIdx.x < kZeroColumns) smem_x[kSlice + threadIdx.x] = C{};
    uint32_t unit = warp.begin;
    const int last_slice = p.unit_tiles[block_end - 1] / p.strips;
    for (int slice = p.unit_tiles[block_begin] / p.strips; slice <= last_slice; ++slice) {
        __syncthreads();  // the slice before this one is read
        stage_x<Element, kTokens>(p, slice, token_tile * kTokens, smem_x);
        __syncthreads();
        const uint32_t stop = min(warp.end, p.tile_starts[(slice + 1) * p.strips]);
        while (unit < stop) {
            warp.consume(vectors[0], unit++);
            warp.fetch(vectors[0]);
            if (unit >= stop) {
                const Vector<Element> next = vectors[1];
                vectors[1] = vectors[0], vectors[0] = next;
                break;
            }
            warp.consume(vectors[1], unit++);
            warp.fetch(vectors[1]);
        }
    }
    if (warp.begin == warp.end) return;
    const int last_tile = warp.tile;
    if (warp.begun) warp.leave_part();
    const int groups = (p.strips + p.group - 1) / p.group;
    warp.arrive(first_tile, last_tile, p.counters + token_tile * groups);
}

template <class Element, int kTokens>
cudaError_t run(Csr p, const CudaProblem& problem, const CsrPlan& plan) {
    const int64_t all = ceil_div(problem.M, kTokens);
    for (int64_t first = 0; first < all; first += plan.token_tiles) {
        const int64_t token = first * kTokens;
        p.x = static_cast<const char*>(problem.x) + token * problem.K * sizeof(Element);
        p.y = static_cast<char*>(problem.y) + token * problem.N * sizeof(Element);
        p.M = static_cast<int>(problem.M - token);
        p.token_tiles = static_cast<int>(std::min<int64_t>(plan.token_tiles, all - first));
        const cudaError_t error =
            launch(csr_simt_kernel<Element, kTokens>,
                   {int64_t{plan.blocks} * p.token_tiles, kThreads}, problem.stream, p);
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}

template <class Element>
cudaError_t run(const Csr& p, const CudaProblem& problem, const CsrPlan& plan) {
    switch (plan.tokens) {
        case 1: return run<Element, 1>(p, problem, plan);
        case 2: return run<Element, 2>(p, problem, plan);
        case 4: return run<Element, 4>(p, problem, plan);
        default:
            if constexpr (sizeof(Element) == 2) return run<Element, 8>(p, problem, plan);
            return cudaErrorInvalidValue;
    }
}

CsrPlan plan_of(int64_t M, int64_t N, int64_t K, int64_t units, DType dtype, int64_t sms) {
    return csr_plan(M, N, K, units, dtype == DType::kFloat32 ? 4 : 2, sms, kCounters);
}

}  // namespace

int64_t csr_workspace_bytes(int64_t M, int64_t N, int64_t K, int64_t units, DType dtype,
                            int64_t sms) {
    const CsrPlan plan = plan_of(M, N, K, units, dtype, sms);
    return kCounters * int64_t{sizeof(int)} + plan.token_tiles * plan.slots * plan.slot_bytes();
}

cudaError_t csr_linear_simt(const CudaProblem& problem, const CsrTiles& weight) {
    const int64_t N = problem.N, K = problem.K;
    const Tables tables = Tables::of(N, K);
    const CsrPlan plan = plan_of(problem.M, N, K, weight.units, problem.dtype, problem.sms);
    Csr p{};
    p.values = static_cast<const char*>(weight.values);
    p.columns = static_cast<const uint4*>(weight.col_indices);
    p.rows = weight.crow_indices;
    p.tile_starts = p.rows + tables.rows;
    p.strip_starts = p.tile_starts + tables.tile_starts;
    p.occupied = p.strip_starts + tables.strip_starts;
    p.unit_pairs = p.occupied + tables.occupied;
    p.unit_tiles = p.unit_pairs + weight.units;
    p.unit_maps = reinterpret_cast<const uint32_t*>(p.unit_tiles + weight.units);
    p.bias = problem.bias;
    p.N = static_cast<int>(N), p.K = static_cast<int>(K);
    p.slices = static_cast<int>(slices(K)), p.strips = static_cast<int>(strips(N));
    p.group = plan.group, p.shares = plan.shares, p.slots = plan.slots;
    const bool wide = problem.dtype == DType::kFloat32;
    p.words = wide || (K % 2 == 0 && reinterpret_cast<uintptr_t>(problem.x) % 4 == 0);
    p.counters = static_cast<int*>(problem.workspace);
    p.parts = reinterpret_cast<float*>(p.counters + kCounters);
    switch (problem.dtype) {
        case DType::kFloat32: return run<float>(p, problem, plan);
        case DType::kFloat16: return run<__half>(p, problem, plan);
        default: return run<__nv_bfloat16>(p, problem, plan);
    }
}

}  // namespace prunekern
