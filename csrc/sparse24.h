// The 2:4 format: of every four inputs of a row at most two weights are kept, and stored as two.
//
//   one row of W      a 0 0 b | 0 0 c d | 0 e 0 0 | ...
//   values            a b       c d       e 0         two a group, in order of their position
//   positions         0 3       2 3       1 2 or any free one; first < second, always
//   meta, canonical   nibble = first | second << 2; a byte holds two groups, even one low
//
//   nibble  0100 1000 1100 1001 1101 1110
//   pair    (0,1)(0,2)(0,3)(1,2)(1,3)(2,3)
//   code      0    1    2    3    4    5              what the permute kernel counts by
//
// Sizes: G = ceil(K / 4) groups a row; values [N, 2G], meta [N, ceil(G / 2)].
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define PK_HOST_DEVICE __host__ __device__
#else
#define PK_HOST_DEVICE
#endif

namespace prunekern::sparse24_format {

constexpr uint32_t kEmptyNibble = 0b0100;  // positions 0 and 1: what padding holds
constexpr uint32_t kEmptyCode = 0;

PK_HOST_DEVICE constexpr uint32_t encode(uint32_t first, uint32_t second) {
    return first | second << 2;
}
PK_HOST_DEVICE constexpr uint32_t first_position(uint32_t nibble) { return nibble & 3; }
PK_HOST_DEVICE constexpr uint32_t second_position(uint32_t nibble) { return (nibble >> 2) & 3; }
PK_HOST_DEVICE constexpr bool is_valid(uint32_t nibble) {
    return first_position(nibble) < second_position(nibble);
}

// (0,1) (0,2) (0,3) (1,2) (1,3) (2,3) -> 0..5. Only for valid nibbles.
PK_HOST_DEVICE constexpr uint32_t pair_code(uint32_t nibble) {
    const uint32_t first = first_position(nibble), second = second_position(nibble);
    return first == 0 ? second - 1 : first + second;
}

// The group's nibble in a canonical row of metadata.
PK_HOST_DEVICE constexpr uint32_t nibble_at(const uint8_t* meta_row, int64_t group) {
    return (meta_row[group / 2] >> (group % 2 * 4)) & 0xf;
}

}  // namespace prunekern::sparse24_format
