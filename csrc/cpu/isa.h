// What this CPU, under this operating system, can run; and what each ISA variant asks of it.
#pragma once
#include <string>
#include <vector>

namespace prunekern {

#if defined(__x86_64__)
// X(name as __builtin_cpu_supports knows it; that function also asks the OS, through XGETBV)
#define PRUNEKERN_CPU_FEATURES(X)                                                          \
    X(avx2)                                                                                \
    X(fma) X(f16c) X(bmi) X(bmi2) X(popcnt) X(avx512f) X(avx512bw) X(avx512dq) X(avx512vl) \
        X(avx512bf16) X(avx512vbmi) X(avx512vbmi2) X(avx512vnni) X(avxvnni)
#else
#define PRUNEKERN_CPU_FEATURES(X)
#endif

enum class Isa { kScalar, kAvx2, kAvx512, kAvx512Bf16 };

struct IsaName {
    Isa isa;
    const char* name;
};
constexpr IsaName kIsas[] = {{Isa::kScalar, "scalar"},
                             {Isa::kAvx2, "avx2"},
                             {Isa::kAvx512, "avx512"},
                             {Isa::kAvx512Bf16, "avx512bf16"}};

// Names of the features that `isa` needs and that are missing here; empty when it can run.
inline std::vector<std::string> missing_features(Isa isa) {
    std::vector<std::string> missing;
#if defined(__x86_64__)
#define PRUNEKERN_NEED(name) \
    if (!__builtin_cpu_supports(#name)) missing.emplace_back(#name);
    __builtin_cpu_init();
    if (isa >= Isa::kAvx2) {
        PRUNEKERN_NEED(avx2)
        PRUNEKERN_NEED(fma)
        PRUNEKERN_NEED(f16c)
        PRUNEKERN_NEED(bmi)
        PRUNEKERN_NEED(bmi2)
        PRUNEKERN_NEED(popcnt)
    }
    if (isa >= Isa::kAvx512) {
        PRUNEKERN_NEED(avx512f)
        PRUNEKERN_NEED(avx512bw)
        PRUNEKERN_NEED(avx512dq)
        PRUNEKERN_NEED(avx512vl)
    }
    if (isa >= Isa::kAvx512Bf16) {
        PRUNEKERN_NEED(avx512bf16)
        PRUNEKERN_NEED(avx512vbmi)
        PRUNEKERN_NEED(avx512vbmi2)
    }
#undef PRUNEKERN_NEED
#else
    if (isa != Isa::kScalar) missing.emplace_back("x86_64");
#endif
    return missing;
}

}  // namespace prunekern
