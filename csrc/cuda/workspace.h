// Device memory in which blocks of one launch meet, one piece a stream.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace prunekern {

// At least `bytes` of memory on the current device for launches on `stream`: zero when new, and
// from then on as the last launch left it. Null bytes need none. Costs a search under a lock,
// except where a launch needs more than any before on its stream: that allocates and waits for the
// memory to be zero, outside the stream, so that it also works while the stream is being captured
// into a graph.
//
// What was handed out is never freed, as captured graphs keep its address. Graphs captured on one
// stream share a workspace: like those that use cuBLAS they must not run at the same time.
cudaError_t get_workspace(int device, cudaStream_t stream, int64_t bytes, void** data);

}  // namespace prunekern
