// Every launcher of the package on one page: raw pointers and sizes, no torch.
//
// All of them compute y[M,N] = x[M,K] W[N,K]^T + bias[N], W compressed, with fp32 accumulation, for
// any M >= 1, N >= 1, K >= 1. x and y are dense, row-major and of the weight's dtype; so is bias.
// The layout that each launcher reads is drawn in prunekern/layouts/, which is the specification.
#pragma once
#include <cstdint>

namespace prunekern {

enum class DType { kFloat32, kBFloat16, kFloat16 };

// Runs body(ctx, begin, end) over a partition of [0, n) into ranges of at least `grain`, on the
// caller's pool of threads (torch's own, see ops.cpp; serial in the C++ tests). Kernels partition
// outputs only, never a sum, so results do not depend on the number of threads.
using ParallelFor = void (*)(int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t),
                             void* ctx);

struct Problem {
    const void* x;     // [M, K]
    void* y;           // [M, N], every element is written
    const void* bias;  // [N] or nullptr
    int64_t M, N, K;
    DType dtype;
    ParallelFor parallel_for;
};

struct Sparse24Weight {
    const void* values;
    const void* meta;  // bytes (scalar) or 32-bit words (all others)
};

// Whole numbers of 8 or 4 bits; W = number * scale.
struct QuantizedSparse24Weight {
    const void* values;
    const void* meta;    // bytes (scalar) or 32-bit words (all others)
    const void* scales;  // of the problem's dtype
    int64_t row_scales;  // of one row
    int64_t group_size;  // inputs that share one: a power of two, at least 32
};

struct BitmaskWeight {
    const void* values;
    const void* bitmask;     // bytes (scalar) or 64-bit words (all others)
    const int64_t* offsets;  // first value of each row (scalar) or row tile, one more at the end
};

struct CsrWeight {
    const void* values;
    const void* col_indices;  // uint16 or int32
    bool wide_columns;        // true: int32
    const int64_t* crow_indices;
};

void sparse24_linear_scalar(const Problem&, const Sparse24Weight&);
void sparse24_linear_avx2(const Problem&, const Sparse24Weight&);
void sparse24_linear_avx512(const Problem&, const Sparse24Weight&);
void sparse24_linear_avx512bf16(const Problem&, const Sparse24Weight&);
void sparse24_linear_amx(const Problem&, const Sparse24Weight&);

void sparse24_int8_linear_scalar(const Problem&, const QuantizedSparse24Weight&);

void sparse24_int4_linear_scalar(const Problem&, const QuantizedSparse24Weight&);

void bitmask_linear_scalar(const Problem&, const BitmaskWeight&);
void bitmask_linear_avx2(const Problem&, const BitmaskWeight&);
void bitmask_linear_avx512(const Problem&, const BitmaskWeight&);
void bitmask_linear_avx512bf16(const Problem&, const BitmaskWeight&);
void bitmask_linear_amx(const Problem&, const BitmaskWeight&);

void csr_linear_scalar(const Problem&, const CsrWeight&);
void csr_linear_avx2(const Problem&, const CsrWeight&);
void csr_linear_avx512(const Problem&, const CsrWeight&);

// Packing: canonical tensors of one weight to the order that a kernel reads. Outputs are allocated
// by the caller with the sizes of prunekern/layouts and written whole, padding included.

// kTileRows rows side by side: 8 (avx2) or 16 (all others).
struct Sparse24Pack {
    const void* values;   // [N, 2G]
    const uint8_t* meta;  // [N, ceil(G/2)]
    int64_t N, K;
    DType dtype;
    int64_t tile_rows;
    bool pair_codes;  // avx512bf16, amx: one of six pairs instead of two positions
    void* packed_values;
    int32_t* packed_meta;
    ParallelFor parallel_for;
};
void sparse24_pack(const Sparse24Pack&);

// Canonical tensors to and from other forms of the same weight; each launcher says what it writes.
struct Sparse24Convert {
    void* values;         // [N, 2G]: read, but by take
    const uint8_t* meta;  // [N, ceil(G/2)], read
    int64_t N, K, element_bytes;
    ParallelFor parallel_for;
    void* dense = nullptr;               // [N, K]: written by decompress, read by take
    void* transposed_values = nullptr;   // [K, 2 ceil(N/4)]
    uint8_t* transposed_meta = nullptr;  // [K, ceil(ceil(N/4) / 2)]
};
void sparse24_decompress(const Sparse24Convert&);
void sparse24_take(const Sparse24Convert&);
// Returns how many groups of W^T keep more than two; where there are any, outputs are of no use.
int64_t sparse24_transpose(const Sparse24Convert&);

struct BitmaskPack {
    const void* values;      // [nnz]
    const uint8_t* bitmask;  // [N, ceil(K/8)]
    int64_t N, K, nnz;
    int64_t element_bytes;
    void* packed_values;       // [nnz + 64]
    uint64_t* packed_bitmask;  // [T, C, 4]
    int64_t* offsets;          // [T + 1]
};
// Returns the number of bits set; where it is not nnz, the outputs hold nothing of use.
int64_t bitmask_pack(const BitmaskPack&);

}  // namespace prunekern
