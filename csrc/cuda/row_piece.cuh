// A lane's share of a row: as many neighbouring elements as a type of 8 or 16 bytes, Piece, holds.
// Piece i of a row of `width` elements begins at element i * (elements of a Piece).
//
// kAligned: rows start at a multiple of a piece and consist of whole ones; each is one access.
// Otherwise a piece is read and written element by element, and none beyond the row.
#pragma once
#include <cstdint>
#include <cstring>

namespace prunekern {

template <bool kAligned, typename Piece, typename Element>
__device__ Piece load_piece(const Element* row, int64_t i, int64_t width, Element padding = 0) {
    if constexpr (kAligned) {
        return reinterpret_cast<const Piece*>(row)[i];
    } else {
        constexpr int kElements = sizeof(Piece) / sizeof(Element);
        Element elements[kElements];
#pragma unroll
        for (int j = 0; j < kElements; ++j)
            elements[j] = kElements * i + j < width ? row[kElements * i + j] : padding;
        Piece piece;
        memcpy(&piece, elements, sizeof piece);
        return piece;
    }
}

template <bool kAligned, typename Piece, typename Element>
__device__ void store_piece(Element* row, int64_t i, int64_t width, Piece piece) {
    if constexpr (kAligned) {
        reinterpret_cast<Piece*>(row)[i] = piece;
    } else {
        constexpr int kElements = sizeof(Piece) / sizeof(Element);
        Element elements[kElements];
        memcpy(elements, &piece, sizeof piece);
#pragma unroll
        for (int j = 0; j < kElements; ++j)
            if (kElements * i + j < width) row[kElements * i + j] = elements[j];
    }
}

inline bool starts_at_multiple_of(uintptr_t bytes, const void* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

}  // namespace prunekern
