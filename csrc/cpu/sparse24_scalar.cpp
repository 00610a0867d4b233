// y[M,N] = x[M,K] W[N,K]^T, W 2:4 in its canonical form (drawn in sparse24.h), on any CPU.
//
//   values [N, 2G]   row n: first, second kept of group 0 | of group 1 | ...
//   meta [N, G/2]    row n: a byte for two groups
//
// Limit: arithmetic, see scalar_rows.h.
#include "../sparse24.h"
#include "scalar_rows.h"

namespace prunekern {

void sparse24_linear_scalar(const Problem& p, const Sparse24Weight& w) {
    using namespace sparse24_format;
    const int64_t groups = (p.K + 3) / 4;
    const int64_t meta_bytes = (groups + 1) / 2;
    with_dtype(p.dtype, [&](auto e) {
        using E = decltype(e);
        linear_by_rows<E>(p, [&](int64_t n, std::vector<Term>& terms) {
            const auto* values = static_cast<const typename E::T*>(w.values) + n * 2 * groups;
            const auto* meta = static_cast<const uint8_t*>(w.meta) + n * meta_bytes;
            for (int64_t g = 0; g < groups; ++g) {
                const uint32_t nibble = nibble_at(meta, g);
                const int64_t inputs[2] = {4 * g + first_position(nibble),
                                           4 * g + second_position(nibble)};
                for (int j = 0; j < 2; ++j)
                    if (inputs[j] < p.K)  // the last group may reach beyond the row
                        terms.push_back({E::widen(values[2 * g + j]), inputs[j]});
            }
        });
    });
}

}  // namespace prunekern
