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

// ld.global.cg: 4, 8 or 16 bytes as L2 has them, after all that stands before it.
__device__ __forceinline__ float load_from_l2(const float* p) {
    float v;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory");
    return v;
}
__device__ __forceinline__ float2 load_from_l2(const float2* p) {
    float2 v;
    asm volatile("ld.global.cg.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(p) : "memory");
    return v;
}
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

// The same, to be kept in L2, and on chips before sm_80 as well.
template <int kOffset>
__device__ __forceinline__ uint4 load_once(const void* p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4 + %5];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p), "n"(kOffset));
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

// ld.global.nc, 8 bytes: as above.
__device__ __forceinline__ uint2 load_pair_shared_by_many(const void* p) {
    uint2 v;
    asm volatile("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
}

// cp.async.cg: 16 bytes from global to shared memory that leave L2 first, if left > kIndex.
template <int kTo, int kFrom, int kIndex>
__device__ __forceinline__ void copy_streaming_if(uint32_t to, const void* from, int left,
                                                  uint64_t policy) {
    asm volatile("{\n.reg .pred exists;\nsetp.gt.s32 exists, %2, %6;\n"
                 "@exists cp.async.cg.shared.global.L2::cache_hint [%0 + %4], [%1 + %5], 16, %3;"
                 "\n}" ::"r"(to),
                 "l"(from), "r"(left), "l"(policy), "n"(kTo), "n"(kFrom), "n"(kIndex)
                 : "memory");
}

// The same for what other blocks read as well.
template <int kTo, int kFrom, int kIndex>
__device__ __forceinline__ void copy_if(uint32_t to, const void* from, int left) {
    asm volatile("{\n.reg .pred exists;\nsetp.gt.s32 exists, %2, %5;\n"
                 "@exists cp.async.cg.shared.global [%0 + %3], [%1 + %4], 16;\n}" ::"r"(to),
                 "l"(from), "r"(left), "n"(kTo), "n"(kFrom), "n"(kIndex)
                 : "memory");
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

// ld.shared: the 16 bits at p + kOffset, above them zeros.
template <int kOffset>
__device__ __forceinline__ uint32_t load_half(uint32_t p) {
    uint32_t v;
    asm volatile("ld.shared.u16 %0, [%1 + %2];" : "=r"(v) : "r"(p), "n"(kOffset) : "memory");
    return v;
}

// ld.shared: the 16 bytes at p + kOffset.
template <int kOffset>
__device__ __forceinline__ uint4 load_quad(uint32_t p) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4 + %5];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(p), "n"(kOffset)
                 : "memory");
    return v;
}

// shfl.sync.down: adds to `sum` that of the lane kDistance above, where there is one.
template <int kDistance>
__device__ __forceinline__ void add_from_above(uint32_t& sum) {
    asm volatile("{\n.reg .pred exists;\n.reg .u32 above;\n"
                 "shfl.sync.down.b32 above|exists, %0, %1, 31, -1;\n"
                 "@exists add.u32 %0, %0, above;\n}"
                 : "+r"(sum)
                 : "n"(kDistance));
}

// dp4a: c + the sum of the bytes of a, unsigned, times those of kFactors, signed.
template <uint32_t kFactors>
__device__ __forceinline__ uint32_t dot_bytes(uint32_t a, uint32_t c) {
    uint32_t sum;
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "n"(kFactors), "r"(c));
    return sum;
}

// shfl.sync.idx: what lane kLane has.
template <int kLane>
__device__ __forceinline__ uint32_t broadcast(uint32_t v) {
    uint32_t out;
    asm volatile("shfl.sync.idx.b32 %0, %1, %2, 31, -1;" : "=r"(out) : "r"(v), "n"(kLane));
    return out;
}

// prmt: nibble i of the selector names the byte of a (0 to 3) or b (4 to 7) that becomes byte i.
template <uint32_t kSelector>
__device__ __forceinline__ uint32_t permute(uint32_t a, uint32_t b) {
    uint32_t v;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "n"(kSelector));
    return v;
}
__device__ __forceinline__ uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
    uint32_t v;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(selector));
    return v;
}
// The same of a constant.
template <uint32_t kTable>
__device__ __forceinline__ uint32_t look_up(uint32_t selector) {
    uint32_t v;
    asm("prmt.b32 %0, %1, 0, %2;" : "=r"(v) : "n"(kTable), "r"(selector));
    return v;
}

// lop3: (v & kMask) ^ kBits, of masked bits that kBits has not the same as (v & kMask) | kBits.
template <uint32_t kMask, uint32_t kBits>
__device__ __forceinline__ uint32_t mask_flip(uint32_t v) {
    uint32_t out;
    asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(out) : "r"(v), "n"(kMask), "n"(kBits));
    return out;
}

// fma.rn: a b + c of two pairs of 16-bit elements, rounded once.
#define FMA_PAIRS(Element, type)                                                                 \
    __device__ __forceinline__ uint32_t fma_pairs(uint32_t a, uint32_t b, uint32_t c, Element) { \
        uint32_t d;                                                                              \
        asm("fma.rn." type "x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));             \
        return d;                                                                                \
    }
FMA_PAIRS(__half, "f16")
FMA_PAIRS(__nv_bfloat16, "bf16")
#undef FMA_PAIRS

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

// mma.m16n8k16: d[16, 8] += a[16, 16] b[16, 8], fp32 sums.
#define MMA(Element, type)                                                                       \
    __device__ __forceinline__ void mma(float (&d)[4], const uint4& a, uint32_t b0, uint32_t b1, \
                                        Element) {                                               \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 "              \
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"           \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                            \
                     : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));                \
    }
MMA(__half, "f16")
MMA(__nv_bfloat16, "bf16")
#undef MMA

// mma.sp::ordered_metadata.m16n8k32: d[16, 8] += a[16, 32] b[32, 8], a 2:4 sparse along its rows
// (stored 16 x 16), fp32 sums. kSelector: the pair of lanes in each quad that gives the metadata.
#define MMA_SPARSE(Element, type)                                                                 \
    template <int kSelector>                                                                      \
    __device__ __forceinline__ void mma_sparse(float (&d)[4], const uint4& a, const uint4& b,     \
                                               uint32_t meta, Element) {                          \
        asm volatile("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32." type "." type  \
                     ".f32 "                                                                      \
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, " \
                     "%12, %13;"                                                                  \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                             \
                     : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y), "r"(b.z),      \
                       "r"(b.w), "r"(meta), "n"(kSelector));                                      \
    }
MMA_SPARSE(__half, "f16")
MMA_SPARSE(__nv_bfloat16, "bf16")
#undef MMA_SPARSE

// The same of whole numbers of 8 bits, m16n8k64: d[16, 8] += a[16, 64] b[64, 8] (a stored 16 x 32),
// 32-bit sums. All lanes give metadata.
__device__ __forceinline__ void mma_sparse_bytes(int (&d)[4], const uint4& a, const uint4& b,
                                                 uint32_t meta) {
    asm volatile("mma.sp::ordered_metadata.sync.aligned.m16n8k64.row.col.s32.s8.s8.s32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, "
                 "%12, 0;"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y), "r"(b.z), "r"(b.w),
                   "r"(meta));
}

// ---- sm_90a: barriers in shared memory, the tensor memory accelerator, warpgroup products

__device__ __forceinline__ void init_barrier(uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals)
                 : "memory");
}
// fence.mbarrier_init: the asynchronous proxy sees the barriers made so far.
__device__ __forceinline__ void publish_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// One arrival, and the phase waits for so many bytes of copies more.
__device__ __forceinline__ void arrive_expecting(uint32_t barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void wait_barrier(uint32_t barrier, int parity) {
    asm volatile("{\n.reg .pred done;\nagain:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n}" ::"r"(barrier),
                 "r"(parity)
                 : "memory");
}

// cp.async.bulk.tensor: the box of the map at (column, row) to shared memory; outside it is zero.
__device__ __forceinline__ void load_box(uint32_t to, const void* map, int column, int row,
                                         uint32_t barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(to),
                 "l"(map), "r"(column), "r"(row), "r"(barrier)
                 : "memory");
}

// Registers a thread of this warpgroup, given back or taken.
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// A barrier of some warps of the block, and whether the predicate holds for any of their threads.
template <int kId, int kThreads>
__device__ __forceinline__ void sync_some() {
    asm volatile("bar.sync %0, %1;" ::"n"(kId), "n"(kThreads) : "memory");
}
template <int kId, int kThreads>
__device__ __forceinline__ bool any_of_some(bool predicate) {
    int any;
    asm volatile("{\n.reg .pred in, out;\nsetp.ne.u32 in, %1, 0;\n"
                 "bar.red.or.pred out, %2, %3, in;\nselp.u32 %0, 1, 0, out;\n}"
                 : "=r"(any)
                 : "r"(static_cast<int>(predicate)), "n"(kId), "n"(kThreads)
                 : "memory");
    return any;
}

// Descriptor of a tile in shared memory with K along its rows of 128 bytes, swizzled as the tensor
// map's 128-byte mode does: 1024 bytes from one group of eight rows to the next. It lies at a
// multiple of 1024; 16 bytes along a row are one unit of the descriptor.
__device__ __forceinline__ uint64_t tile_descriptor(uint32_t tile) {
    constexpr uint64_t kSwizzle128 = 1, kGroupStride = 1024 / 16;
    return kSwizzle128 << 62 | kGroupStride << 32 | 1ull << 16 | tile >> 4;
}

__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kNewest>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kNewest) : "memory");
}

// wgmma.mma_async.sp.m64n128k32: d[64, 128] += a[64, 32] b[32, 128] of a warpgroup; a 2:4 sparse
// from registers, each warp its 16 rows as for mma_sparse; b from shared memory.
#define WGMMA_SPARSE(Element, type)                                                               \
    template <int kSelector>                                                                      \
    __device__ __forceinline__ void wgmma_sparse(float (&d)[64], const uint4& a, uint64_t b,      \
                                                 uint32_t meta, Element) {                        \
        asm volatile(                                                                             \
            "wgmma.mma_async.sp.sync.aligned.m64n128k32.f32." type "." type " "                   \
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "        \
            "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "         \
            "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, "         \
            "%47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "         \
            "%62, %63}, "                                                                         \
            "{%64, %65, %66, %67}, %68, %69, %70, 1, 1, 1, 0;"                                    \
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), \
              "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]),          \
              "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]),       \
              "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),       \
              "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]),       \
              "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]),       \
              "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]),       \
              "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),       \
              "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]),       \
              "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]),       \
              "+f"(d[61]), "+f"(d[62]), "+f"(d[63])                                               \
            : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b), "r"(meta), "n"(kSelector));         \
    }
WGMMA_SPARSE(__half, "f16")
WGMMA_SPARSE(__nv_bfloat16, "bf16")
#undef WGMMA_SPARSE

}  // namespace prunekern::ptx
