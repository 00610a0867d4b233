// The 128 opaque bytes of a tensor map, in the emulator's own form: written by the stand-in for
// cuTensorMapEncodeTiled (runtime_stub.cpp), by emulator.py's TensorMap and by
// tensormap.replace. Numbers of types and modes are the driver API's (CUtensorMapDataType, ...).
#pragma once
#include <cstdint>

namespace emu {

struct TensorMap {
    uint64_t address;    // of element 0, 16-byte aligned
    uint64_t dim[5];     // elements, innermost first
    uint64_t stride[4];  // bytes, of dimensions 1..4; multiples of 16
    uint32_t box[5];     // elements that one copy moves, 256 at most
    uint8_t step[5];     // every how many elements: 1
    uint8_t type;        // see element_bytes
    uint8_t rank;        // dimensions minus one, as tensormap.replace gives it
    uint8_t interleave;  // 0: none
    uint8_t swizzle;     // 0 none, 1 32, 2 64, 3 128 bytes
    uint8_t fill;        // outside the tensor: 0 zero, 1 NaN
    uint8_t unused[18];
};
static_assert(sizeof(TensorMap) == 128);

inline uint32_t element_bytes(uint8_t type) {
    constexpr uint8_t bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
    return type < sizeof bytes ? bytes[type] : 0;
}

// Bytes of a swizzle's row; the 16-byte pieces of a row change places by the row's number, modulo
// 2, 4 or 8: address bits 4.. are xored with bits 7...
inline uint32_t swizzled(uint32_t address, int swizzle) {
    return address ^ ((address >> 7 & ((1u << swizzle) - 1)) << 4);
}

// Why the map cannot be used, or null.
inline const char* refusal(const TensorMap& map) {
    uint32_t size = element_bytes(map.type);
    if (!size) return "its element type is not known";
    if (map.rank > 4) return "it has more than five dimensions";
    if (map.interleave) return "interleaved layouts are not emulated";
    if (map.fill > 1 || map.swizzle > 3) return "its fill or swizzle mode is not known";
    if (map.address % 16) return "its address is not a multiple of 16 bytes";
    for (int i = 0; i <= map.rank; ++i) {
        if (!map.dim[i]) return "a dimension is 0";
        if (!map.box[i] || map.box[i] > 256) return "its box must be 1 to 256 elements a dimension";
        if (map.step[i] != 1) return "element strides other than 1 are not emulated";
        if (i && map.stride[i - 1] % 16) return "a stride is not a multiple of 16 bytes";
    }
    if (map.box[0] * size % 16) return "its box's rows are not a multiple of 16 bytes";
    if (map.swizzle && map.box[0] * size != 16u << map.swizzle)
        return "its box's rows do not have the swizzle's size (shorter ones are not emulated)";
    return nullptr;
}

}  // namespace emu
