// What this CPU, under this operating system, can run; and what each ISA variant asks of it.
#pragma once
#include <string>
#include <vector>

namespace prunekern {

enum class Isa { kScalar, kAvx2, kAvx512, kAvx512Bf16 };

struct IsaName {
    Isa isa;
    const char* name;
};
constexpr IsaName kIsas[] = {{Isa::kScalar, "scalar"},
                             {Isa::kAvx2, "avx2"},
                             {Isa::kAvx512, "avx512"},
                             {Isa::kAvx512Bf16, "avx512bf16"}};

#if defined(__x86_64__)
// X(name as __builtin_cpu_supports knows it, which also asks the OS; the first variant to need it).
// CMakeLists.txt compiles each variant's files with the flags of these.
#define PRUNEKERN_NEEDED_FEATURES(X) \
    X(avx2, Isa::kAvx2)              \
    X(fma, Isa::kAvx2)               \
    X(f16c, Isa::kAvx2)              \
    X(bmi, Isa::kAvx2)               \
    X(bmi2, Isa::kAvx2)              \
    X(popcnt, Isa::kAvx2)            \
    X(avx512f, Isa::kAvx512)         \
    X(avx512bw, Isa::kAvx512)        \
    X(avx512dq, Isa::kAvx512)        \
    X(avx512vl, Isa::kAvx512)        \
    X(avx512bf16, Isa::kAvx512Bf16)  \
    X(avx512vbmi, Isa::kAvx512Bf16)  \
    X(avx512vbmi2, Isa::kAvx512Bf16)
#else
#define PRUNEKERN_NEEDED_FEATURES(X)
#endif

// Names of the features that `isa` needs and that are missing here; empty when it can run.
inline std::vector<std::string> missing_features(Isa isa) {
    std::vector<std::string> missing;
#if defined(__x86_64__)
    __builtin_cpu_init();
#define PRUNEKERN_NEED(name, first) \
    if (isa >= first && !__builtin_cpu_supports(#name)) missing.emplace_back(#name);
    PRUNEKERN_NEEDED_FEATURES(PRUNEKERN_NEED)
#undef PRUNEKERN_NEED
#else
    if (isa != Isa::kScalar) missing.emplace_back("x86_64");
#endif
    return missing;
}

}  // namespace prunekern
