// bitmask_linear_avx2: see bitmask_simd.h, compiled here with its own ISA flags.
#include "bitmask_simd.h"

namespace prunekern {

void bitmask_linear_avx2(const Problem& p, const BitmaskWeight& w) { bitmask::linear_any(p, w); }

}  // namespace prunekern
