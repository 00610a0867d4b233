// y[M,N] = x[M,K] W[N,K]^T, W as CSR, on any CPU.
//
//   crow_indices [N+1]   where each row starts
//   col_indices, values  the kept weights of row 0, row 1, ...
//
// Limit: arithmetic, see scalar_rows.h.
#include "scalar_rows.h"

namespace prunekern {

void csr_linear_scalar(const Problem& p, const CsrWeight& w) {
    with_dtype(p.dtype, [&](auto e) {
        using E = decltype(e);
        linear_by_rows<E>(p, [&](int64_t n, std::vector<Term>& terms) {
            const auto* values = static_cast<const typename E::T*>(w.values);
            for (int64_t j = w.crow_indices[n]; j < w.crow_indices[n + 1]; ++j) {
                const int64_t column = w.wide_columns
                                           ? static_cast<const int32_t*>(w.col_indices)[j]
                                           : static_cast<const uint16_t*>(w.col_indices)[j];
                terms.push_back({E::widen(values[j]), column});
            }
        });
    });
}

}  // namespace prunekern
