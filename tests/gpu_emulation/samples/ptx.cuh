// The PTX instructions that the samples use and CUDA C++ does not name, one wrapper each.
//
//   global ──cp.async──▶ shared ──ldmatrix──▶ registers ──mma.sync──▶ registers
//
// Addresses of shared memory are 32-bit offsets into the shared window (shared_address). Fragments
// are arrays in the instruction's own order of registers; the PTX ISA draws them under "Matrix
// Fragments for mma.m16n8k16" and "for sparse mma.m16n8k32".
#pragma once
#include <cstdint>
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
