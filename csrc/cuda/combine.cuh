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

constexpr int kCounters = 4096;  // one a block: the tile that begins in it and that it shares

__host__ __device__ constexpr int64_t workspace_bytes(int64_t blocks, int64_t slot_bytes) {
    return kCounters * int64_t{sizeof(int)} + 2 * blocks * slot_bytes;
}

__device__ __forceinline__ void add(float4& a, const float4& b) {
    a.x += b.x, a.y += b.y, a.z += b.z, a.w += b.w;
}

// True where the block has the whole tile in `sums` afterwards and is to write it out. All threads
// of the block call it together; it leaves them synchronised.
template <int kCount, int kThreads>
__device__ __forceinline__ bool combine(float4 (&sums)[kCount], const Stripes& stripes, int tile,
                                        void* workspace) {
    const int first = stripes.first_block(tile), last = stripes.last_block(tile);
    if (first == last) return true;
    int* counter = static_cast<int*>(workspace) + first;
    auto* slots = reinterpret_cast<float4*>(static_cast<int*>(workspace) + kCounters);
    auto slot = [&](int block) {
        return slots + int64_t{stripes.slot(block, tile)} * kCount * kThreads + threadIdx.x;
    };
    float4* mine = slot(blockIdx.x);
#pragma unroll
    for (int i = 0; i < kCount; ++i) mine[i * kThreads] = sums[i];
    __threadfence();
    __syncthreads();
    if (!__syncthreads_or(threadIdx.x == 0 && atomicAdd(counter, 1) == last - first)) return false;
    __threadfence();
    if (threadIdx.x == 0) *counter = 0;
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
