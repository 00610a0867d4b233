// New tensors for the ops, through torch's C shim: the dispatcher's own new_empty costs as much as
// a whole small layer.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cstdint>

#include "checks.h"

// Its name in older versions of torch, 2.11 among them.
#if !defined(STABLE_TORCH_ERROR_CODE_CHECK)
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace prunekern {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int32_t dtype_code(const Tensor& t) {
    int32_t code = 0;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &code));
    return code;
}

// Contiguous and uninitialized.
inline Tensor empty(int32_t dtype, const int64_t* sizes, int64_t dim, const Device& device) {
    int64_t strides[kMaxDims];
    int64_t stride = 1;
    for (int64_t i = dim - 1; i >= 0; --i) {
        strides[i] = stride;
        stride *= sizes[i];
    }
    const bool is_cuda = device.type() == DeviceType::CUDA;
    AtenTensorHandle handle = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dim, sizes, strides, dtype,
                                                           is_cuda ? aoti_torch_device_type_cuda()
                                                                   : aoti_torch_device_type_cpu(),
                                                           is_cuda ? device.index() : 0, &handle));
    return Tensor(handle);
}

// y [..., N] for x [..., K], and how many rows it has.
struct Output {
    Tensor y;
    int64_t tokens;
};
inline Output empty_output(const Tensor& x, int64_t N, const Device& device) {
    const int64_t dim = x.dim();
    int64_t sizes[kMaxDims];
    int64_t tokens = 1;
    for (int64_t i = 0; i + 1 < dim; ++i) tokens *= sizes[i] = x.size(i);
    sizes[dim - 1] = N;
    return {empty(dtype_code(x), sizes, dim, device), tokens};
}

}  // namespace prunekern
