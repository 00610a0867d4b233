// Argument checks of the ops: the only error sentences in C++. All read
// "<op>: <what> must <rule>, got <value>".
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace prunekern {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;
using torch::stable::Device;
using torch::stable::Tensor;

constexpr int64_t kMaxDims = 16;  // of x

template <class Got>
[[noreturn]] void fail(const char* op, const std::string& what, const std::string& rule,
                       const Got& got) {
    std::ostringstream message;
    message << "prunekern::" << op << ": " << what << " must " << rule << ", got " << got;
    throw std::runtime_error(message.str());
}

inline const char* name_of(ScalarType type) { return torch::headeronly::toString(type); }

inline std::string shape_of(const Tensor& t) {
    std::ostringstream out;
    out << '[';
    for (int64_t i = 0; i < t.dim(); ++i) out << (i ? ", " : "") << t.size(i);
    out << ']';
    return out.str();
}

inline DType dtype_of(const char* op, const char* what, const Tensor& t) {
    switch (t.scalar_type()) {
        case ScalarType::Float: return DType::kFloat32;
        case ScalarType::BFloat16: return DType::kBFloat16;
        case ScalarType::Half: return DType::kFloat16;
        default: fail(op, what, "be float32, bfloat16 or float16", name_of(t.scalar_type()));
    }
}

inline bool is_aligned(const Tensor& t, uintptr_t bytes) {
    const auto address = reinterpret_cast<uintptr_t>(t.const_data_ptr());
    return address % bytes == 0;
}

inline std::string name_of(const Device& device) {
    switch (device.type()) {
        case DeviceType::CPU: return "cpu";
        case DeviceType::CUDA: return "cuda:" + std::to_string(device.index());
        default: return "another device";
    }
}

inline void check_device(const char* op, const char* what, const Tensor& t, const Device& device) {
    const Device found = t.device();
    const bool is_cpu = device.type() == DeviceType::CPU;  // whose index may be 0 or absent
    if (found.type() != device.type() || (!is_cpu && found.index() != device.index()))
        fail(op, what, "be on " + name_of(device), name_of(found));
}

// A packed tensor: on this device, of this dtype, contiguous, of this shape, and at an address that
// is a multiple of `alignment` bytes (0: of its element size).
inline void check_packed(const char* op, const char* what, const Tensor& t, const Device& device,
                         ScalarType type, std::initializer_list<int64_t> shape,
                         uintptr_t alignment = 0) {
    check_device(op, what, t, device);
    if (t.scalar_type() != type)
        fail(op, what, std::string("be ") + name_of(type), name_of(t.scalar_type()));
    bool fits = t.dim() == static_cast<int64_t>(shape.size());
    int64_t i = 0;
    for (const int64_t size : shape) fits = fits && t.size(i++) == size;
    if (!fits) {
        std::ostringstream rule;
        rule << "have the shape [";
        for (const int64_t* size = shape.begin(); size != shape.end(); ++size)
            rule << (size == shape.begin() ? "" : ", ") << *size;
        rule << "]; pack the weight for this op and give its out_features and in_features";
        fail(op, what, rule.str(), shape_of(t));
    }
    if (!t.is_contiguous()) fail(op, what, "be contiguous", "strides of a view");
    if (alignment == 0 && !is_aligned(t, t.element_size()))
        fail(op, what, "start at a multiple of its element size; clone it", "another address");
    if (alignment != 0 && !is_aligned(t, alignment))
        fail(op, what, "start at a multiple of " + std::to_string(alignment) + " bytes; clone it",
             "another address");
}

// The upper limit keeps every product of sizes in the ops and kernels within 64 bits.
inline void check_sizes(const char* op, int64_t out_features, int64_t in_features) {
    constexpr int64_t kMax = INT32_MAX;
    if (out_features < 1 || out_features > kMax)
        fail(op, "out_features", "be at least 1 and below 2^31", out_features);
    if (in_features < 1 || in_features > kMax)
        fail(op, "in_features", "be at least 1 and below 2^31", in_features);
}

// What every linear op asks of x and bias, given a weight of K inputs and N outputs on `device`.
inline void check_linear(const char* op, const Tensor& x, ScalarType weight_type,
                         const std::optional<Tensor>& bias, int64_t N, int64_t K,
                         const Device& device) {
    check_device(op, "x", x, device);
    const int64_t dim = x.dim();
    if (dim < 1 || dim > kMaxDims) fail(op, "x", "have 1 to 16 dimensions", dim);
    if (x.size(dim - 1) != K)
        fail(op, "the last dimension of x", "be in_features = " + std::to_string(K), shape_of(x));
    if (weight_type != x.scalar_type())
        fail(op, "x", std::string("have the weight's dtype ") + name_of(weight_type),
             name_of(x.scalar_type()));
    if (bias) check_packed(op, "bias", *bias, device, weight_type, {N});
}

// Values behind row pointers or offsets that end with `end`: 1-D, `padding` zeros at the end.
inline void check_values(const char* op, const Tensor& values, const Device& device,
                         const char* pointers, int64_t end, int64_t padding) {
    if (end < 0 || end > INT64_MAX - padding)
        fail(op, pointers, "end with the number of values", end);
    check_packed(op, "values", values, device, values.scalar_type(), {end + padding});
}

}  // namespace prunekern
