// The part of the CUDA runtime and driver that our host code and CUTLASS's call, linked into a
// HostModule (host.py) in its place: kernels are known by name, launches go to a function that
// Python sets, tensor maps are written in the emulator's form.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <utility>

#include "engine/tensor_map.h"

struct Dim3 {
    unsigned x, y, z;
};
struct LaunchAttribute {  // cudaLaunchAttribute
    int id;
    char padding[4];
    unsigned value[16];
};
constexpr int kClusterDimension = 4;  // cudaLaunchAttributeClusterDimension
struct LaunchConfig {                 // cudaLaunchConfig_t
    Dim3 grid, block;
    size_t shared;
    void* stream;
    const LaunchAttribute* attributes;
    unsigned count;
};
using Launch = int (*)(const char* name, const unsigned* grid, const unsigned* block,
                       void** arguments, size_t shared);

namespace {
Launch launch_here = nullptr;
int last_error = 0;
// Kernels register while the library is loaded, perhaps before this file's own statics are made.
std::map<const void*, std::string>& names() {
    static std::map<const void*, std::string> table;
    return table;
}
struct {
    Dim3 grid, block;
    size_t shared;
    void* stream;
} pushed;

// cuTensorMapEncodeTiled: the parameters in the driver's order.
int encode_tiled(emu::TensorMap* map, int type, unsigned rank, void* address, const uint64_t* dim,
                 const uint64_t* stride, const unsigned* box, const unsigned* step, int interleave,
                 int swizzle, int, int fill) {
    *map = {};
    map->address = reinterpret_cast<uint64_t>(address);
    map->type = static_cast<uint8_t>(type);
    map->rank = static_cast<uint8_t>(rank - 1);
    for (unsigned i = 0; i < rank; ++i) {
        map->dim[i] = dim[i], map->box[i] = box[i], map->step[i] = static_cast<uint8_t>(step[i]);
        if (i) map->stride[i - 1] = stride[i - 1];
    }
    map->interleave = static_cast<uint8_t>(interleave);
    map->swizzle = static_cast<uint8_t>(swizzle);
    map->fill = static_cast<uint8_t>(fill);
    return emu::refusal(*map) ? 1 : 0;  // CUDA_ERROR_INVALID_VALUE
}
}  // namespace

extern "C" {
void emu_set_launch(Launch function) { launch_here = function; }

void** __cudaRegisterFatBinary(void*) {
    static void* handle;
    return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 0; }
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*,
                            void*, void*, int*) {
    names()[host] = name;
}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, size_t shared, void* stream) {
    pushed = {grid, block, shared, stream};
    return 0;
}
int __cudaPopCallConfiguration(Dim3* grid, Dim3* block, size_t* shared, void** stream) {
    *grid = pushed.grid, *block = pushed.block, *shared = pushed.shared, *stream = pushed.stream;
    return 0;
}
int __cudaGetKernel(void** kernel, const void* host) {
    *kernel = const_cast<void*>(host);
    return 0;
}
int cudaLaunchKernel(const void* kernel, Dim3 grid, Dim3 block, void** arguments, size_t shared,
                     void*) {
    auto found = names().find(kernel);
    last_error = found == names().end() || !launch_here
                     ? 98  // cudaErrorInvalidDeviceFunction
                     : launch_here(found->second.c_str(), &grid.x, &block.x, arguments, shared);
    return last_error;
}
int __cudaLaunchKernel(const void* kernel, Dim3 grid, Dim3 block, void** arguments, size_t shared,
                       void* stream) {
    return cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}
int cudaLaunchKernelExC(const LaunchConfig* config, const void* kernel, void** arguments) {
    for (unsigned i = 0; i < config->count; ++i) {
        const LaunchAttribute& a = config->attributes[i];
        bool clusters = a.value[0] * a.value[1] * a.value[2] > 1;
        if (a.id == kClusterDimension && clusters) return 801;  // cudaErrorNotSupported
    }
    return cudaLaunchKernel(kernel, config->grid, config->block, arguments, config->shared,
                            config->stream);
}
int cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned,
                                     unsigned long long, int* status) {
    bool known = !std::strcmp(name, "cuTensorMapEncodeTiled");
    *function = known ? reinterpret_cast<void*>(encode_tiled) : nullptr;
    if (status) *status = !known;
    return 0;
}
int cudaFuncSetAttribute(const void*, int, int) { return 0; }
int cudaGetLastError() { return std::exchange(last_error, 0); }
int cudaPeekAtLastError() { return last_error; }
const char* cudaGetErrorString(int) { return "error"; }
int cudaGetDevice(int* device) { return *device = 0; }
int cudaDeviceGetAttribute(int* value, int, int) { return *value = 0; }
// Device memory is never asked for by what we run: a host tensor's device side stays empty.
int cudaMalloc(void** pointer, size_t) {
    *pointer = nullptr;
    return 2;
}
int cudaFree(void*) { return 0; }
int cudaMemsetAsync(void*, int, size_t, void*) { return 1; }
}
