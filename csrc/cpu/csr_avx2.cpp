// csr_linear_avx2: see csr_simd.h, compiled here with its own ISA flags.
#include "csr_simd.h"

namespace prunekern {

void csr_linear_avx2(const Problem& p, const CsrWeight& w) { csr::linear_any(p, w); }

}  // namespace prunekern
