// y[M,N] = x[M,K] W[N,K]^T, W 2:4 of int8 or int4 in its canonical form, on any CPU.
//
//   values   int8 [N, 2G]   row n: first, second kept of group 0 | of group 1 | ...
//            int4 [N, G]    a byte a group: first kept in the low nibble, second in the high one
//   meta [N, ceil(G/2)]     as in sparse24_scalar.cpp
//   scales [N, S]           W = whole number * scale; one for group_size inputs of a row
//
// Limit: arithmetic, see scalar_rows.h.
#include "../sparse24.h"
#include "scalar_rows.h"

namespace prunekern {
namespace {

struct Int8 {
    static constexpr int64_t kGroupBytes = 2;
    static int kept(const uint8_t* group, int j) { return static_cast<int8_t>(group[j]); }
};
struct Int4 {
    static constexpr int64_t kGroupBytes = 1;
    static int kept(const uint8_t* group, int j) {  // two's complement: 8..15 are -8..-1
        return ((*group >> (4 * j) & 0xf) ^ 8) - 8;
    }
};

template <class Number>
void linear(const Problem& p, const QuantizedSparse24Weight& w) {
    using namespace sparse24_format;
    const int64_t groups = (p.K + 3) / 4;
    const int64_t meta_bytes = (groups + 1) / 2;
    with_dtype(p.dtype, [&](auto e) {
        using E = decltype(e);
        linear_by_rows<E>(p, [&](int64_t n, std::vector<Term>& terms) {
            const auto* values =
                static_cast<const uint8_t*>(w.values) + n * groups * Number::kGroupBytes;
            const auto* meta = static_cast<const uint8_t*>(w.meta) + n * meta_bytes;
            const auto* scales = static_cast<const typename E::T*>(w.scales) + n * w.row_scales;
            for (int64_t g = 0; g < groups; ++g) {
                const uint32_t nibble = nibble_at(meta, g);
                const int64_t inputs[2] = {4 * g + first_position(nibble),
                                           4 * g + second_position(nibble)};
                const float scale = E::widen(scales[4 * g / w.group_size]);
                for (int j = 0; j < 2; ++j) {
                    const int kept = Number::kept(values + g * Number::kGroupBytes, j);
                    if (inputs[j] < p.K)  // the last group may reach beyond the row
                        terms.push_back({static_cast<float>(kept) * scale, inputs[j]});
                }
            }
        });
    });
}

}  // namespace

void sparse24_int8_linear_scalar(const Problem& p, const QuantizedSparse24Weight& w) {
    linear<Int8>(p, w);
}
void sparse24_int4_linear_scalar(const Problem& p, const QuantizedSparse24Weight& w) {
    linear<Int4>(p, w);
}

}  // namespace prunekern
