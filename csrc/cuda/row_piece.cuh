// A lane's share of a row: as many neighbouring elements as a type of 4 to 16 bytes, Piece, holds.
//
// kAligned: every piece lies within its row and starts at a multiple of its size, and is one
// access. Otherwise it is read and written element by element, and none beyond the row.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace prunekern {

template <bool kAligned, typename Piece, typename Element>
__device__ Piece load_piece(const Element* row, int64_t column, int64_t width,
                            Element padding = 0) {
    if constexpr (kAligned) {
        return *reinterpret_cast<const Piece*>(row + column);
    } else {
        constexpr int kCount = sizeof(Piece) / sizeof(Element);
        Element elements[kCount];
#pragma unroll
        for (int i = 0; i < kCount; ++i)
            elements[i] = column + i < width ? row[column + i] : padding;
        Piece piece;
        memcpy(&piece, elements, sizeof piece);
        return piece;
    }
}

template <bool kAligned, typename Piece, typename Element>
__device__ void store_piece(Element* row, int64_t column, int64_t width, Piece piece) {
    if constexpr (kAligned) {
        // Of 32-bit members nvcc 13 makes four stores where a condition guards them, of these one.
        using Access = std::conditional_t<sizeof(Piece) == sizeof(ulonglong2), ulonglong2, Piece>;
        Access access;
        memcpy(&access, &piece, sizeof access);
        *reinterpret_cast<Access*>(row + column) = access;
    } else {
        constexpr int kCount = sizeof(Piece) / sizeof(Element);
        Element elements[kCount];
        memcpy(elements, &piece, sizeof piece);
#pragma unroll
        for (int i = 0; i < kCount; ++i)
            if (column + i < width) row[column + i] = elements[i];
    }
}

inline bool starts_at_multiple_of(uintptr_t bytes, const void* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

}  // namespace prunekern
