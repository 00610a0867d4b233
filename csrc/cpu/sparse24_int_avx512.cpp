// sparse24_int8_linear_avx512 and sparse24_int4_linear_avx512: see sparse24_int_simd.h, compiled
// here with its own ISA flags.
#include "sparse24_int_simd.h"

namespace prunekern {

void sparse24_int8_linear_avx512(const Problem& p, const QuantizedSparse24Weight& w) {
    sparse24_int::linear_any<sparse24_int::Int8>(p, w);
}
void sparse24_int4_linear_avx512(const Problem& p, const QuantizedSparse24Weight& w) {
    sparse24_int::linear_any<sparse24_int::Int4>(p, w);
}

}  // namespace prunekern
