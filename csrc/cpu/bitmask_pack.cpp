// Canonical bitmask tensors to the layout of all vector variants; bitmask.h draws both.
//
// Limit: one pass, memory: values are copied a chunk of a row at a time.
#include "../bitmask.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "../kernels.h"

namespace prunekern {

int64_t bitmask_pack(const BitmaskPack& p) {
    using namespace bitmask_format;
    const int64_t row_bytes = (p.K + 7) / 8;
    const int64_t tiles = (p.N + kTileRows - 1) / kTileRows;
    const int64_t chunks = (p.K + kChunkColumns - 1) / kChunkColumns;
    const auto word = [&](int64_t n, int64_t c) -> uint64_t {
        uint64_t bits = 0;
        if (n < p.N)
            std::memcpy(&bits, p.bitmask + n * row_bytes + c * 8,
                        static_cast<size_t>(std::min<int64_t>(8, row_bytes - c * 8)));
        return bits;
    };

    // Where each row of the canonical values starts; also what tells a mask that does not fit.
    std::vector<int64_t> row_start(static_cast<size_t>(p.N) + 1, 0);
    for (int64_t n = 0; n < p.N; ++n) {
        int64_t kept = 0;
        for (int64_t c = 0; c < chunks; ++c) kept += std::popcount(word(n, c));
        row_start[n + 1] = row_start[n] + kept;
    }
    if (row_start[p.N] != p.nnz) return row_start[p.N];

    const char* values = static_cast<const char*>(p.values);
    char* out = static_cast<char*>(p.packed_values);
    int64_t packed = 0;
    for (int64_t t = 0; t < tiles; ++t) {
        p.offsets[t] = packed;
        int64_t next[kTileRows];
        for (int64_t r = 0; r < kTileRows; ++r)
            next[r] = row_start[std::min(t * kTileRows + r, p.N)];
        for (int64_t c = 0; c < chunks; ++c)
            for (int64_t r = 0; r < kTileRows; ++r) {
                const uint64_t bits = word(t * kTileRows + r, c);
                const int64_t kept = std::popcount(bits);
                p.packed_bitmask[(t * chunks + c) * kTileRows + r] = bits;
                if (kept > 0)
                    std::memcpy(out + packed * p.element_bytes, values + next[r] * p.element_bytes,
                                static_cast<size_t>(kept * p.element_bytes));
                next[r] += kept;
                packed += kept;
            }
    }
    p.offsets[tiles] = packed;
    std::memset(out + packed * p.element_bytes, 0, static_cast<size_t>(kPadding * p.element_bytes));
    return packed;
}

}  // namespace prunekern
