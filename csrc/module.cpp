// prunekern._C: what is not a tensor op. What was built and why, and what this CPU can run.
#include <pybind11/pybind11.h>

#include <cstring>
#include <string>

#include "cpu/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace py = pybind11;

namespace {

py::dict build_info() {
    py::dict info;
    info["compiler"] = PRUNEKERN_COMPILER;
    info["build_type"] = PRUNEKERN_BUILD_TYPE;
    info["torch"] = PRUNEKERN_TORCH;
    info["variants"] = py::str(PRUNEKERN_VARIANTS).attr("split")();
    info["sanitized"] = static_cast<bool>(PRUNEKERN_SANITIZED);
    info["amx"] = static_cast<bool>(PRUNEKERN_AMX);
    info["cuda"] = static_cast<bool>(PRUNEKERN_CUDA);
    info["cuda_status"] = PRUNEKERN_CUDA_STATUS;
    info["cuda_architectures"] = py::str(PRUNEKERN_CUDA_ARCHITECTURES).attr("split")();
    return info;
}

py::dict cpu_features() {
    py::dict features;
#if defined(__x86_64__)
    using prunekern::Isa;
    __builtin_cpu_init();
#define PRUNEKERN_FEATURE(name, isa) features[name] = __builtin_cpu_supports(name) != 0;
    PRUNEKERN_NEEDED_FEATURES(PRUNEKERN_FEATURE)
#undef PRUNEKERN_FEATURE
#endif
    return features;
}

// Variant names in order of preference, each with the features that it needs and that are missing.
py::dict cpu_variants() {
    py::dict variants;
    for (const auto& [isa, name] : prunekern::kIsas) {
        py::list missing;
        for (const auto& feature : prunekern::missing_features(isa)) missing.append(feature);
        variants[name] = missing;
    }
    return variants;
}

// The processor's brand string (CPUID leaves 0x80000002 to 4), empty where there is none.
std::string cpu_name() {
    char name[49] = {};
#if defined(__x86_64__)
    unsigned int words[12];
    for (unsigned int i = 0; i < 3; ++i)
        if (!__get_cpuid(0x80000002 + i, &words[4 * i], &words[4 * i + 1], &words[4 * i + 2],
                         &words[4 * i + 3]))
            return "";
    std::memcpy(name, words, sizeof(words));
#endif
    return name;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "What was built, and what this CPU can run.";
    m.def("build_info", &build_info,
          "Compiler, torch version, variants, AMX, CUDA: with what and for what, or why not.");
    m.def("cpu_features", &cpu_features, "Instruction sets that CPU and system support, by name.");
    m.def("cpu_variants", &cpu_variants, "Variant -> instruction sets that it lacks here.");
    m.def("cpu_name", &cpu_name, "The processor's own name.");
}
