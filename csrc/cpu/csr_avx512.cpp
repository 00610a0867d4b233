// csr_linear_avx512: see csr_simd.h, compiled here with its own ISA flags.
#include "csr_simd.h"

namespace prunekern {

void csr_linear_avx512(const Problem& p, const CsrWeight& w) { csr::linear_any(p, w); }

}  // namespace prunekern
