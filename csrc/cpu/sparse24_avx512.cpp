// sparse24_linear_avx512: see sparse24_simd.h, compiled here with its own ISA flags.
#include "sparse24_simd.h"

namespace prunekern {

void sparse24_linear_avx512(const Problem& p, const Sparse24Weight& w) {
    sparse24::linear_any(p, w);
}

}  // namespace prunekern
