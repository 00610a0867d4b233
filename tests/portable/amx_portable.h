// The tile instructions that csrc/cpu uses, in plain C++: from the operation sections of the Intel
// SDM, volume 2. Included after avx512_portable.h. A tile that is used outside of a configuration,
// or in another size than the configuration gives, ends the process.
#pragma once
#include <cmath>
#include <cstdlib>

namespace portable {

constexpr int kRows = 16, kRowBytes = 64;
struct Tile {
    unsigned char row[kRows][kRowBytes];
};
struct TileState {
    bool is_configured = false;
    int rows[8] = {}, row_bytes[8] = {};
    Tile tile[8];
};
inline thread_local TileState tiles;

// What the drawings of the kernels count on: all tiles in their full size.
inline Tile& full_tile(int t) {
    if (!tiles.is_configured || tiles.rows[t] != kRows || tiles.row_bytes[t] != kRowBytes)
        std::abort();
    return tiles.tile[t];
}
inline void tile_loadconfig(const void* config) {
    const auto* bytes = static_cast<const unsigned char*>(config);
    if (bytes[0] != 1 || bytes[1] != 0) std::abort();  // palette, start row
    tiles.is_configured = true;
    std::memset(tiles.tile, 0, sizeof(tiles.tile));
    for (int t = 0; t < 8; ++t) {
        tiles.row_bytes[t] = bytes[16 + 2 * t] | bytes[17 + 2 * t] << 8;
        tiles.rows[t] = bytes[48 + t];
    }
}
inline void tile_release() { tiles.is_configured = false; }
inline void tile_zero(int t) { full_tile(t) = {}; }
inline void tile_loadd(int t, const void* p, int64_t stride) {
    for (int i = 0; i < kRows; ++i)
        std::memcpy(full_tile(t).row[i], static_cast<const char*>(p) + i * stride, kRowBytes);
}
inline void tile_stored(int t, void* p, int64_t stride) {
    for (int i = 0; i < kRows; ++i)
        std::memcpy(static_cast<char*>(p) + i * stride, full_tile(t).row[i], kRowBytes);
}
// The sums of even and of odd inputs apart, then both added to c; denormals count as zero.
inline void tile_dpbf16ps(int c, int a, int b) {
    const auto flush = [](float v) { return std::fpclassify(v) == FP_SUBNORMAL ? v * 0.0F : v; };
    const auto input = [&](int t, int row, int element) {
        uint16_t v;
        std::memcpy(&v, full_tile(t).row[row] + 2 * element, 2);
        return flush(std::bit_cast<float>(static_cast<uint32_t>(v) << 16));
    };
    for (int m = 0; m < kRows; ++m)
        for (int n = 0; n < kRowBytes / 4; ++n) {
            float parity[2] = {};
            for (int k = 0; k < kRowBytes / 4; ++k)
                for (int i = 0; i < 2; ++i)
                    parity[i] = flush(
                        __builtin_fmaf(input(a, m, 2 * k + i), input(b, k, 2 * n + i), parity[i]));
            float sum;
            unsigned char* at = full_tile(c).row[m] + 4 * n;
            std::memcpy(&sum, at, 4);
            sum = flush(flush(sum) + flush(parity[0] + parity[1]));
            std::memcpy(at, &sum, 4);
        }
}

}  // namespace portable

#undef _tile_loadconfig
#define _tile_loadconfig portable::tile_loadconfig
#undef _tile_release
#define _tile_release portable::tile_release
#undef _tile_zero
#define _tile_zero portable::tile_zero
#undef _tile_loadd
#define _tile_loadd portable::tile_loadd
#undef _tile_stored
#define _tile_stored portable::tile_stored
#undef _tile_dpbf16ps
#define _tile_dpbf16ps portable::tile_dpbf16ps
