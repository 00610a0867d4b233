// New tensors for the ops, through torch's C shim: the dispatcher's own new_empty costs as much as
// a whole small layer.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/shim_utils.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

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

// As `empty`, of a packed weight, which is read from end to end for every token: its whole pages of
// 2 MB are asked for as such before they are first written, where Linux has them on request.
// Measured on a Xeon: 33 GB/s instead of 30 on two threads, 17 instead of 13 for one stream on one.
inline Tensor empty_weight(int32_t dtype, const int64_t* sizes, int64_t dim, const Device& device) {
    Tensor weight = empty(dtype, sizes, dim, device);
#if defined(__linux__)
    constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
    const auto begin = reinterpret_cast<uintptr_t>(weight.mutable_data_ptr());
    const uintptr_t end = begin + static_cast<uintptr_t>(weight.numel()) * weight.element_size();
    const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
    const uintptr_t last = end / kHugePage * kHugePage;
    // Refused, the weight lies in small pages: no error.
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
    return weight;
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
