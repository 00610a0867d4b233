// The sum of a tile of y that several blocks have each a part of, in a fixed order.
//
//   workspace   int counters[kCounters], then two slots a block of kCount x threads float4
//   each block  part ──▶ its slot, fence, counter += 1
//   the last    slots of the first to the last block that share the tile, added in that order
//
// Counters are zero before and after a launch.
#pragma once
#include "ptx.cuh"
#include "stripes.h"

namespace prunekern {

__device__ __forceinline__ void add(float4& a, const float4& b) {
    a.x += b.x, a.y += b.y, a.z += b.z, a.w += b.w;
}

// Adds the sums of a block's warps, in their order; thread i has what lane i % 32 held of tile i /
// 32 and, from there on, every kWarps-th tile.
template <int kWarps, int kTiles>
__device__ __forceinline__ void add_warps(const float (&acc)[kTiles][4],
                                          float4 (&sums)[kTiles / kWarps], float4* smem) {
    constexpr int kLanes = 32, kThreads = kWarps * kLanes;
    const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
    __syncthreads();  // the sums before these are read
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
        smem[(warp * kTiles + i) * kLanes + lane] =
            make_float4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kTiles / kWarps; ++i) {
        const float4* tile = smem + i * kThreads + threadIdx.x;
        sums[i] = tile[0];
#pragma unroll
        for (int w = 1; w < kWarps; ++w) add(sums[i], tile[w * kTiles * kLanes]);
    }
}

// The threads that hold a block's part: all of it, or some warps.
template <int kCount>
struct WholeBlock {
    static constexpr int kThreads = kCount;
    __device__ static int thread() { return threadIdx.x; }
    __device__ static void sync() { __syncthreads(); }
    __device__ static bool any(bool predicate) { return __syncthreads_or(predicate); }
};

// True where the block has the whole tile in `sums` afterwards and is to write it out. All of the
// threads call it together; it leaves them synchronised.
template <class Threads, int kCount>
__device__ __forceinline__ bool combine(float4 (&sums)[kCount], const Stripes& stripes, int tile,
                                        void* workspace) {
    constexpr int kThreads = Threads::kThreads;
    const int thread = Threads::thread();
    const int first = stripes.first_block(tile), last = stripes.last_block(tile);
    if (first == last) return true;
    int* counter = static_cast<int*>(workspace) + first;
    auto* slots = reinterpret_cast<float4*>(static_cast<int*>(workspace) + kCounters);
    auto slot = [&](int block) {
        return slots + int64_t{stripes.slot(block, tile)} * kCount * kThreads + thread;
    };
    float4* mine = slot(blockIdx.x);
#pragma unroll
    for (int i = 0; i < kCount; ++i) mine[i * kThreads] = sums[i];
    __threadfence();
    Threads::sync();
    if (!Threads::any(thread == 0 && atomicAdd(counter, 1) == last - first)) return false;
    __threadfence();
    if (thread == 0) *counter = 0;
#pragma unroll
    for (float4& sum : sums) sum = make_float4(0, 0, 0, 0);
#pragma unroll 1
    for (int block = first; block <= last; ++block) {
        const float4* part = slot(block);
#pragma unroll
        for (int i = 0; i < kCount; ++i) add(sums[i], ptx::load_from_l2(part + i * kThreads));
    }
    return true;
}

}  // namespace prunekern
