// What this CPU, under this operating system, can run; and what each ISA variant asks of it.
#pragma once
#include <string>
#include <vector>

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace prunekern {

enum class Isa { kScalar, kAvx2, kAvx512, kAvx512Bf16, kAmx };

struct IsaName {
    Isa isa;
    const char* name;
};
constexpr IsaName kIsas[] = {{Isa::kScalar, "scalar"},
                             {Isa::kAvx2, "avx2"},
                             {Isa::kAvx512, "avx512"},
                             {Isa::kAvx512Bf16, "avx512bf16"},
                             {Isa::kAmx, "amx"}};

#if defined(__x86_64__)
// X(name as __builtin_cpu_supports knows it, which also asks the OS; the first variant to need it).
// CMakeLists.txt compiles each variant's files with the flags of these.
#define PRUNEKERN_NEEDED_FEATURES(X)   \
    X("avx2", Isa::kAvx2)              \
    X("fma", Isa::kAvx2)               \
    X("f16c", Isa::kAvx2)              \
    X("bmi", Isa::kAvx2)               \
    X("bmi2", Isa::kAvx2)              \
    X("popcnt", Isa::kAvx2)            \
    X("avx512f", Isa::kAvx512)         \
    X("avx512bw", Isa::kAvx512)        \
    X("avx512dq", Isa::kAvx512)        \
    X("avx512vl", Isa::kAvx512)        \
    X("avx512bf16", Isa::kAvx512Bf16)  \
    X("avx512vbmi", Isa::kAvx512Bf16)  \
    X("avx512vbmi2", Isa::kAvx512Bf16) \
    PRUNEKERN_AMX_FEATURES(X)
#if PRUNEKERN_AMX  // a compiler that lacks the flags does not know the names either
#define PRUNEKERN_AMX_FEATURES(X) X("amx-tile", Isa::kAmx) X("amx-bf16", Isa::kAmx)
#else
#define PRUNEKERN_AMX_FEATURES(X)
#endif
#else
#define PRUNEKERN_NEEDED_FEATURES(X)
#endif

#if PRUNEKERN_AMX
// Linux gives a process the tile registers, 8 KB a thread to save, only when it asks; for all of
// its threads and once for all. Documentation/arch/x86/xstate.rst.
inline bool may_use_tiles() {
#if defined(__linux__)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
    return granted;
#else
    return false;
#endif
}
#endif

// Names of the features that `isa` needs and that are missing here; empty when it can run.
inline std::vector<std::string> missing_features(Isa isa) {
    std::vector<std::string> missing;
#if defined(__x86_64__)
    __builtin_cpu_init();
#define PRUNEKERN_NEED(name, first) \
    if (isa >= first && !__builtin_cpu_supports(name)) missing.emplace_back(name);
    PRUNEKERN_NEEDED_FEATURES(PRUNEKERN_NEED)
#undef PRUNEKERN_NEED
    if (isa == Isa::kAmx) {
#if PRUNEKERN_AMX
        if (missing.empty() && !may_use_tiles())
            missing.emplace_back("the system's permission for tiles (arch_prctl)");
#else
        missing.emplace_back("a build by a compiler that has -mamx-bf16");
#endif
    }
#else
    if (isa != Isa::kScalar) missing.emplace_back("x86_64");
#endif
    return missing;
}

}  // namespace prunekern
