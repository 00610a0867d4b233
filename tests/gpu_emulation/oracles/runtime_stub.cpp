// The part of the CUDA runtime that CUTLASS's host code calls, linked into an oracle in the
// runtime's place: kernels are known by name, launches go to a function that Python sets,
// attributes answer for the chip asked for.
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

struct Dim3 {
    unsigned x, y, z;
};
using Launch = int (*)(const char* name, const unsigned* grid, const unsigned* block,
                       void** arguments, size_t shared);

namespace {
Launch launch_here = nullptr;
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
constexpr int kAttribute = 0;
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
    if (found == names().end() || !launch_here) return 98;  // cudaErrorInvalidDeviceFunction
    return launch_here(found->second.c_str(), &grid.x, &block.x, arguments, shared);
}
int __cudaLaunchKernel(const void* kernel, Dim3 grid, Dim3 block, void** arguments, size_t shared,
                       void* stream) {
    return cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}
int cudaFuncSetAttribute(const void*, int, int) { return 0; }
int cudaGetLastError() { return 0; }
int cudaPeekAtLastError() { return 0; }
const char* cudaGetErrorString(int) { return "error"; }
int cudaGetDevice(int* device) { return *device = 0; }
int cudaDeviceGetAttribute(int* value, int, int) {
    *value = kAttribute;
    return 0;
}
// Device memory is never asked for by what we run: a host tensor's device side stays empty.
int cudaMalloc(void** pointer, size_t) {
    *pointer = nullptr;
    return 2;
}
int cudaFree(void*) { return 0; }
}
