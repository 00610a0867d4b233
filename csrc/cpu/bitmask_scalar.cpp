// y[M,N] = x[M,K] W[N,K]^T, W as bitmask in its canonical form (drawn in bitmask.h), on any CPU.
//
//   bitmask [N, K/8]   row n: a byte for 8 columns, low bit first
//   values [nnz]       the kept weights, row by row; offsets[n] is where row n starts
//
// Limit: arithmetic, see scalar_rows.h.
#include <bit>

#include "scalar_rows.h"

namespace prunekern {

void bitmask_linear_scalar(const Problem& p, const BitmaskWeight& w) {
    const int64_t row_bytes = (p.K + 7) / 8;
    with_dtype(p.dtype, [&](auto e) {
        using E = decltype(e);
        linear_by_rows<E>(p, [&](int64_t n, std::vector<Term>& terms) {
            const auto* values = static_cast<const typename E::T*>(w.values) + w.offsets[n];
            const auto* mask = static_cast<const uint8_t*>(w.bitmask) + n * row_bytes;
            for (int64_t byte = 0; byte < row_bytes; ++byte)
                for (uint32_t bits = mask[byte]; bits != 0; bits &= bits - 1)
                    terms.push_back({E::widen(*values++), 8 * byte + std::countr_zero(bits)});
        });
    });
}

}  // namespace prunekern
