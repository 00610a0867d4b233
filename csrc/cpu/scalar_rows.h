// What the three scalar kernels share: a row is expanded once to its terms (weight, input), then
// meets every token. Each output is the sum of its terms in order of their inputs, in fp32, in
// blocks, since short sums, added up, round less than a long one.
//
// Limit: one multiply-add a kept weight and token, one at a time; any CPU runs it.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "../kernels.h"
#include "float_formats.h"

namespace prunekern {

struct Term {
    float weight;
    int64_t input;
};

// expand(row, terms) appends the kept weights of one row.
template <class E, class Expand>
void linear_by_rows(const Problem& p, Expand&& expand) {
    struct Context {
        const Problem& p;
        Expand& expand;
    } context{p, expand};
    const auto body = [](void* ctx, int64_t begin, int64_t end) {
        using Elem = typename E::T;
        const auto& [p, expand] = *static_cast<Context*>(ctx);
        const auto* bias = static_cast<const Elem*>(p.bias);
        std::vector<Term> terms;
        for (int64_t n = begin; n < end; ++n) {
            terms.clear();
            expand(n, terms);
            for (int64_t m = 0; m < p.M; ++m) {
                const auto* x = static_cast<const Elem*>(p.x) + m * p.K;
                constexpr size_t kBlock = 16;
                float sum = 0;
                for (size_t block = 0; block < terms.size(); block += kBlock) {
                    float part = 0;
                    for (size_t j = block; j < std::min(block + kBlock, terms.size()); ++j)
                        part += terms[j].weight * E::widen(x[terms[j].input]);
                    sum += part;
                }
                if (bias) sum += E::widen(bias[n]);
                static_cast<Elem*>(p.y)[m * p.N + n] = E::narrow(sum);
            }
        }
    };
    constexpr int64_t kWorkPerTask = 16 * 1024;
    p.parallel_for(p.N, std::max<int64_t>(1, kWorkPerTask / (p.K * p.M)), body, &context);
}

}  // namespace prunekern
