// Every instruction that the CUDA kernels spell out, one small function each; nothing else has asm.
// Source: PTX ISA 8.5, the section named beside each.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace prunekern::ptx {

// Calls f(Constant<0>), ... f(Constant<kCount - 1>): a loop whose index can be an immediate.
template <int kValue>
struct Constant {
    static constexpr int value = kValue;
};
template <int kCount, int kFirst = 0, class F>
__device__ __forceinline__ void unrolled(F&& f) {
    if constexpr (kFirst < kCount) {
        f(Constant<kFirst>{});
        unrolled<kCount, kFirst + 1>(f);
    }
}

// Address in the shared state space, as the instructions below take it.
__device__ __forceinline__ uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// createpolicy: what is read with it leaves L2 first. Weights are read once a token.
__device__ __forceinline__ uint64_t evict_first_policy() {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

// Holds a value in a register: the compiler would rather compute it again at each use.
__device__ __forceinline__ void keep(const char*& p) { asm volatile("" : "+l"(p)); }
__device__ __forceinline__ void keep(uint32_t& v) { asm volatile("" : "+r"(v)); }
__device__ __forceinline__ void keep(int& v) { asm volatile("" : "+r"(v)); }

// ld.global.cg: 16 bytes as L2 has them, after all that stands before it.
__device__ __forceinline__ float4 load_from_l2(const float4* p) {
    float4 v;
    asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}

// ld.global.nc, 16 bytes at p + kOffset that pass L1 by.
template <int kOffset>
__device__ __forceinline__ uint4 load_streaming(const void* p, uint64_t policy) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4 + %6], "
                 "%5;"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p), "l"(policy), "n"(kOffset));
    return v;
}

// ld.global.nc, 16 bytes at p + kOffset: for what other warps and blocks read as well.
template <int kOffset>
__device__ __forceinline__ uint4 load_shared_by_many(const void* p) {
    uint4 v;
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4 + %5];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p), "n"(kOffset));
    return v;
}

// cp.async.cg: 16 bytes from global to shared memory, of which the first `bytes` are read and the
// rest zero.
template <int kTo, int kFrom>
__device__ __forceinline__ void copy_async(uint32_t to, const void* from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0 + %3], [%1 + %4], 16, %2;" ::"r"(to), "l"(from),
                 "r"(bytes), "n"(kTo), "n"(kFrom)
                 : "memory");
}
__device__ __forceinline__ void commit_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
// All but the newest kNewest groups of this thread have landed.
template <int kNewest>
__device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kNewest) : "memory");
}

// ldmatrix: four 8 x 8 matrices of 16-bit elements, their rows at the lanes' addresses + kOffset.
template <int kOffset>
__device__ __forceinline__ uint4 load_matrices(uint32_t row) {
    uint4 v;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4 + %5];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(row), "n"(kOffset)
                 : "memory");
    return v;
}

// movmatrix: an 8 x 8 matrix of 16-bit elements, two in each lane, transposed.
__device__ __forceinline__ uint32_t transpose_matrix(uint32_t v) {
    uint32_t out;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(v));
    return out;
}

// mma.sp::ordered_metadata.m16n8k32: d[16, 8] += a[16, 32] b[32, 8], a 2:4 sparse along its rows
// (stored 16 x 16), fp32 sums. kSelector: the pair of lanes in each quad that gives the metadata.
template <int kSelector>
__device__ __forceinline__ void mma_sparse(float (&d)[4], const uint4& a, const uint4& b,
                                           uint32_t meta, __half) {
    asm volatile("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, "
                 "%12, %13;"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y), "r"(b.z), "r"(b.w),
                   "r"(meta), "n"(kSelector));
}
template <int kSelector>
__device__ __forceinline__ void mma_sparse(float (&d)[4], const uint4& a, const uint4& b,
                                           uint32_t meta, __nv_bfloat16) {
    asm volatile("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, "
                 "%12, %13;"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y), "r"(b.z), "r"(b.w),
                   "r"(meta), "n"(kSelector));
}

}  // namespace prunekern::ptx
