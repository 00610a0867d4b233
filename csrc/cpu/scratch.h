// Small host-side helpers that every kernel file needs: cache-line aligned scratch, a parallel loop
// over a lambda, dispatch from a number to a template argument.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

#include "../kernels.h"

namespace prunekern {
namespace {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Uninitialised, aligned to 64 bytes, with 64 bytes of slack for whole-vector accesses at the end.
template <class T>
class Scratch {
  public:
    explicit Scratch(int64_t elems)
        : data_(static_cast<T*>(std::aligned_alloc(
              64,
              static_cast<size_t>(round_up(elems * static_cast<int64_t>(sizeof(T)) + 64, 64))))) {
        if (data_ == nullptr) throw std::bad_alloc();
    }
    ~Scratch() { std::free(data_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    T* get() const { return data_; }
    T& operator[](int64_t i) const { return data_[i]; }

  private:
    T* data_;
};

// body(begin, end) over a partition of [0, n) on the caller's threads.
template <class Body>
void parallel_for(const Problem& p, int64_t n, int64_t grain, Body&& body) {
    using B = std::remove_reference_t<Body>;
    p.parallel_for(
        n, grain < 1 ? 1 : grain,
        [](void* ctx, int64_t begin, int64_t end) { (*static_cast<B*>(ctx))(begin, end); }, &body);
}

// Calls f(std::integral_constant<int, n>) for 1 <= n <= Max.
template <int Max, class F>
void with_constant(int n, F&& f) {
    if constexpr (Max > 1) {
        if (n < Max) return with_constant<Max - 1>(n, std::forward<F>(f));
    }
    f(std::integral_constant<int, Max>{});
}

// Elements from one token's row of scratch to the next: a cache line more than a multiple of the
// page, or all tokens' inputs k would fight for the same eight lines of L1.
template <class T>
constexpr int64_t token_stride(int64_t elems) {
    constexpr int64_t kLine = 64 / sizeof(T), kPage = 4096 / sizeof(T);
    return round_up(elems, kPage) - elems < kLine ? round_up(elems, kPage) + kLine
                                                  : round_up(elems, kLine);
}

// Below this many weight elements, waking another thread costs more than it saves.
constexpr int64_t kWeightsPerTask = 32 * 1024;

}  // namespace
}  // namespace prunekern
