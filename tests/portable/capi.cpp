// The AVX-512 and AMX kernels, compiled with portable intrinsics, for ctypes; see
// tests/test_portable.py.
#include "../../csrc/kernels.h"

using namespace prunekern;

namespace {

void serial(int64_t n, int64_t, void (*body)(void*, int64_t, int64_t), void* ctx) {
    if (n > 0) body(ctx, 0, n);
}

}  // namespace

extern "C" {

// kernel: 0 sparse24_avx512, 1 sparse24_avx512bf16, 2 bitmask_avx512, 3 bitmask_avx512bf16,
// 4 csr_avx512, 5 sparse24_amx, 6 bitmask_amx, 7 and 8 sparse24_int{8,4}_avx512, 9 and 10
// sparse24_int{8,4}_amx with `scales` of a row; tensors a, b, c in the order of the packed weight.
void portable_linear(int kernel, const void* x, void* y, const void* bias, int64_t M, int64_t N,
                     int64_t K, int dtype, const void* a, const void* b, const void* c, bool wide,
                     int64_t scales, int64_t group_size) {
    const Problem p{x, y, bias, M, N, K, static_cast<DType>(dtype), serial};
    const auto* starts = static_cast<const int64_t*>(c);
    const QuantizedSparse24Weight quantized{a, b, c, scales, group_size};
    switch (kernel) {
        case 0: return sparse24_linear_avx512(p, {a, b});
        case 1: return sparse24_linear_avx512bf16(p, {a, b});
        case 2: return bitmask_linear_avx512(p, {a, b, starts});
        case 3: return bitmask_linear_avx512bf16(p, {a, b, starts});
        case 4: return csr_linear_avx512(p, {a, b, wide, starts});
        case 5: return sparse24_linear_amx(p, {a, b});
        case 6: return bitmask_linear_amx(p, {a, b, starts});
        case 7: return sparse24_int8_linear_avx512(p, quantized);
        case 8: return sparse24_int4_linear_avx512(p, quantized);
        case 9: return sparse24_int8_linear_amx(p, quantized);
        case 10: return sparse24_int4_linear_amx(p, quantized);
    }
}
}
