// The PTX instructions that the samples use and CUDA C++ does not name, one wrapper each.
//
//   global ──cp.async──▶ shared ──ldmatrix──▶ registers ──mma.sync──▶ registers
//
// Addresses of shared memory are 32-bit offsets into the shared window (shared_address). Fragments
// are arrays in the instruction's own order of registers; the PTX ISA draws them under "Matrix
// Fragments for mma.m16n8k16" and "for sparse mma.m16n8k32".
#pragma once
#include <cstdint>
#include <cuda.h>
#include <cuda_fp16.h>

constexpr unsigned kAllLanes = 0xffffffffu;

// cvta.to.shared: what the instructions below take.
__device__ inline uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// cp.async.cg: 16 bytes, of which the first `bytes` are read and the rest become zero.
__device__ inline void cp_async_16(uint32_t to, const void* from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
                 : "memory");
}

// cp.async.commit_group: closes the thread's group of copies, be it empty.
__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// cp.async.wait_group: all groups of this thread have landed but the kPending newest.
template <int kPending>
__device__ inline void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ldmatrix.x4: four 8 x 8 matrices of halves; lanes 8 i to 8 i + 7 give the rows of the i-th.
__device__ inline void ldmatrix_x4(uint32_t (&r)[4], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}

// ldmatrix.x4.trans: the same, each matrix transposed on the way.
__device__ inline void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}

// mma.m16n8k16: d += a b, halves in, float out.
__device__ inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t* b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// mma.sp.m16n8k32: the same with a 2:4; its metadata come from lanes 2 kSelector and
// 2 kSelector + 1 of each quad.
template <int kSelector>
__device__ inline void mma_sp_m16n8k32(float (&d)[4], const uint32_t (&a)[4],
                                       const uint32_t (&b)[4], uint32_t metadata) {
    asm volatile("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, "
                 "%12, %13;"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]),
                   "r"(b[3]), "r"(metadata), "n"(kSelector));
}

// bar.sync: waits until `threads` threads have come to the barrier, those that arrive included.
__device__ inline void barrier_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// bar.arrive: counts as having come, and goes on.
__device__ inline void barrier_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- sm_90: mbarriers, bulk copies, wgmma
//
//   an mbarrier's phase ends when its arrivals and the bytes it expects have come; a waiter names
//   the parity of the phase whose end it waits for: 0 for the first, 1 for the second, 0 ...

// mbarrier.init: each phase ends after this many arrivals.
__device__ inline void mbarrier_init(uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals)
                 : "memory");
}

// fence.mbarrier_init: the asynchronous proxy sees the barriers made so far.
__device__ inline void fence_mbarrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// mbarrier.arrive: one arrival.
__device__ inline void mbarrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// mbarrier.arrive.expect_tx: one arrival, and the phase waits for this many bytes more.
__device__ inline void mbarrier_expect(uint32_t barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

// mbarrier.try_wait.parity, until it says that the phase has ended.
__device__ inline void mbarrier_wait(uint32_t barrier, int parity) {
    uint32_t done;
    do {
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; "
                     "selp.u32 %0, 1, 0, p; }"
                     : "=r"(done)
                     : "r"(barrier), "r"(parity)
                     : "memory");
    } while (!done);
}

// cp.async.bulk: bytes, a multiple of 16, that the barrier counts as they land.
__device__ inline void bulk_load(uint32_t to, const void* from, int bytes, uint32_t barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
}

// cp.async.bulk.tensor: the map's box at (x, y), x along the rows; elements outside become zero.
__device__ inline void tensor_load(uint32_t to, const CUtensorMap* map, int x, int y,
                                   uint32_t barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(to),
                 "l"(map), "r"(x), "r"(y), "r"(barrier)
                 : "memory");
}

// The way back: elements outside are left out.
__device__ inline void tensor_store(const CUtensorMap* map, int x, int y, uint32_t from) {
    asm volatile(
        "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map),
        "r"(x), "r"(y), "r"(from)
        : "memory");
}

// cp.async.bulk.commit_group: closes the thread's group of bulk stores.
__device__ inline void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// cp.async.bulk.wait_group 0: all of them have been read and written.
__device__ inline void bulk_wait() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

// fence.proxy.async: wgmma and bulk copies see what this thread has stored.
__device__ inline void fence_proxy_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Matrix descriptor of a tile with rows of 128 bytes, swizzled as in tile.cuh: 1024 bytes from one
// group of eight rows to the next. The tile lies at a multiple of 1024; steps along a row are added
// to the descriptor in units of 16 bytes.
__device__ inline uint64_t descriptor(const void* tile) {
    constexpr uint64_t kSwizzle128 = 1, kStride = 1024 / 16, kLeading = 1;  // the last is unused
    return kSwizzle128 << 62 | kStride << 32 | kLeading << 16 | shared_address(tile) >> 4;
}

// wgmma.fence: before the first wgmma that reads registers written otherwise.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// wgmma.commit_group, then wgmma.wait_group 0: all that was issued is done.
__device__ inline void wgmma_finish() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

// wgmma.m64n32k16: d += a b of a warpgroup, both from shared memory, k contiguous.
__device__ inline void wgmma_m64n32k16(float (&d)[16], uint64_t a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, "
                 "%7, %8, %9, %10, %11, %12, %13, %14, %15}, %16, %17, 1, 1, 1, 0, 0;"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
                   "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
                   "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
                 : "l"(a), "l"(b));
}

// wgmma.sp.m64n32k32: the same with a 2:4; metadata as for mma.sp, in each warp for its 16 rows.
template <int kSelector>
__device__ inline void wgmma_sp_m64n32k32(float (&d)[16], uint64_t a, uint64_t b,
                                          uint32_t metadata) {
    asm volatile("wgmma.mma_async.sp.sync.aligned.m64n32k32.f32.f16.f16 {%0, %1, %2, %3, %4, %5, "
                 "%6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, %16, %17, %18, %19, 1, 1, 1, 0, 0;"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
                   "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
                   "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
                 : "l"(a), "l"(b), "r"(metadata), "n"(kSelector));
}
