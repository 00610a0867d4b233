// Launchers of the kernels that make and unmake 2:4 weights. Elements have 16 bits, whatever their
// type: only bits are moved, and magnitudes of float16 and bfloat16 alike ascend with their bits.
//
//   dense [N, K]   values [N, 2G]   meta [N, ceil(G/2)]   G = ceil(K / 4)   see ../sparse24.h
//   panel_values [R][C][4][2][32][8]   panel_meta [R][C][32][4] words
//   see sparse24_fragments.h
//
// All tensors are contiguous; every element of an output is written. N and K are at least 1.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace prunekern {

// Groups with more than two non-zeros: a launch adds to `count` and lowers `first`, which the
// caller sets to 0 and INT64_MAX before. What is written for such a group is of no use. The types
// are those of CUDA's atomics, 64 bits each.
struct BrokenGroups {
    unsigned long long count;
    long long first;  // row * G + group
};

// formats.compress_sparse24: free places go to negative zeros, then to the lowest position.
cudaError_t sparse24_compress(const void* dense, int64_t N, int64_t K, void* values, uint8_t* meta,
                              BrokenGroups* broken, cudaStream_t stream);

// The same of the weights that the mask, bool [N, K], keeps; all others count as +0.
cudaError_t sparse24_compress_masked(const void* dense, const bool* mask, int64_t N, int64_t K,
                                     void* values, uint8_t* meta, BrokenGroups* broken,
                                     cudaStream_t stream);

// Prunes and compresses: of each group the two largest magnitudes stay, of equal ones those at the
// lower position. NaN counts as larger than infinity, among NaNs by its payload.
cudaError_t sparse24_compress_largest(const void* dense, int64_t N, int64_t K, void* values,
                                      uint8_t* meta, cudaStream_t stream);

// formats.decompress.
cudaError_t sparse24_decompress(const void* values, const uint8_t* meta, int64_t N, int64_t K,
                                void* dense, cudaStream_t stream);

// layouts.pack and layouts.unpack of sm80 and sm90a. Panels start at a multiple of 16 bytes.
cudaError_t sparse24_pack_panels(const void* values, const uint8_t* meta, int64_t N, int64_t K,
                                 void* panel_values, int32_t* panel_meta, cudaStream_t stream);
cudaError_t sparse24_unpack_panels(const void* panel_values, const int32_t* panel_meta, int64_t N,
                                   int64_t K, void* values, uint8_t* meta, cudaStream_t stream);

}  // namespace prunekern
