// Launchers of the kernels that make and unmake packed bitmask weights. Elements have 16 bits,
// whatever their type: only bits are moved. What is not canonical is drawn in bitmask_fragments.h.
//
//   bitmask [N, ceil(K/8)]   values [nnz]                     canonical: see ../bitmask.h
//   words [R][C][32][4]      panel_values    offsets [4 R C + 1]
//
// All tensors are contiguous; every element of an output is written. N and K are at least 1.
//
// Where a value lies in either order depends on how many lie before it, so that each direction has
// two launches and a sum between them, which is the caller's:
//
//   1. bits     and counts [N][C]: kept weights of each segment, the 64 columns of a row in a panel
//   2. ends     int64 [N][C], the inclusive sum of counts; its last is nnz
//      offsets  the inclusive sum of what packing left in their place
//   3. values
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels_cuda.h"

namespace prunekern {

// units [4 R C + 1]: 0, then how many each tile takes.
cudaError_t bitmask_pack_words(const uint8_t* bitmask, int64_t N, int64_t K, int32_t* words,
                               int32_t* units, int32_t* counts, cudaStream_t stream);
cudaError_t bitmask_pack_values(const void* values, const int32_t* words, const int32_t* offsets,
                                const int64_t* ends, int64_t N, int64_t K, void* panel_values,
                                cudaStream_t stream);

cudaError_t bitmask_unpack_words(const int32_t* words, int64_t N, int64_t K, uint8_t* bitmask,
                                 int32_t* counts, cudaStream_t stream);
cudaError_t bitmask_unpack_values(const void* panel_values, const int32_t* words,
                                  const int32_t* offsets, const int64_t* ends, int64_t N, int64_t K,
                                  void* values, cudaStream_t stream);

// dense [N, K].
cudaError_t bitmask_decompress(const BitmaskPanels&, int64_t N, int64_t K, void* dense,
                               cudaStream_t stream);

}  // namespace prunekern
