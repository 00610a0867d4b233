// A tile of halves in shared memory, its 16-byte chunks swizzled so that ldmatrix meets no bank
// twice.
//
//   a row of 8 chunks is one pass over the 32 banks        a row of 4 chunks is half a pass
//   row 0 | 0 1 2 3 4 5 6 7 |   chunk c of row r           rows 0, 1 | 0 1 2 3 | 0 1 2 3 |
//   row 1 | 1 0 3 2 5 4 7 6 |   stands at c ^ r % 8        rows 2, 3 | 1 0 3 2 | 1 0 3 2 |
//   row 2 | 2 3 0 1 6 7 4 5 |                              rows 4, 5 | 2 3 0 1 | 2 3 0 1 |
//
// Any eight successive rows then have their chunk c in eight different groups of banks.
#pragma once
#include "ptx.cuh"

// Byte offset of a chunk in a tile with kChunks a row.
template <int kChunks>
__device__ inline uint32_t swizzled(int row, int chunk) {
    return 16 * (row * kChunks + (chunk ^ row * kChunks / 8 % kChunks));
}

// Issues copies of a tile of kRows x 8 kChunks halves at (row, column) of a matrix in row-major
// order; what lies outside of the matrix becomes zero. columns and column: multiples of 8.
template <int kRows, int kChunks, int kThreads>
__device__ inline void copy_tile(uint32_t to, const __half* from, int row, int column, int rows,
                                 int columns) {
    static_assert(kRows * kChunks % kThreads == 0, "every thread copies the same number of chunks");
    for (int turn = 0; turn < kRows * kChunks / kThreads; ++turn) {
        const int i = turn * kThreads + threadIdx.x;
        const int r = row + i / kChunks, c = column + 8 * (i % kChunks);
        const bool inside = r < rows && c < columns;
        cp_async_16(to + swizzled<kChunks>(i / kChunks, i % kChunks),
                    inside ? from + static_cast<size_t>(r) * columns + c : from, inside ? 16 : 0);
    }
}

// The same by plain loads and stores, done when it returns, for kRows x 64 halves. wgmma reads it
// after fence_proxy_async and a barrier.
template <int kRows, int kThreads>
__device__ inline void store_tile(unsigned char* to, const __half* from, int row, int column,
                                  int rows, int columns) {
    for (int i = threadIdx.x; i < kRows * 8; i += kThreads) {
        const int r = row + i / 8, c = column + 8 * (i % 8);
        uint4 chunk = {};
        if (r < rows && c < columns)
            chunk = *reinterpret_cast<const uint4*>(from + static_cast<size_t>(r) * columns + c);
        *reinterpret_cast<uint4*>(to + swizzled<8>(i / 8, i % 8)) = chunk;
    }
}
