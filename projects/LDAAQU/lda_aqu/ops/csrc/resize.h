// Bilinear interpolation with aligned corners.
#pragma once
#include "scalars.h"

namespace LDA_AQU_ISA {
namespace {

// One axis of a map that is resized.
struct ResizedAxis {
    int64_t size;  // before
    double step;   // between two pixels after, in pixels before

    ResizedAxis(int64_t before, int64_t after)
        : size(before),
          step(after > 1 ? static_cast<double>(before - 1) / static_cast<double>(after - 1) : 0) {}

    // The pixel before a position, and the one behind it, which may be the same at the end.
    int64_t lower(int64_t at) const { return min(static_cast<int64_t>(at * step), size - 1); }
    int64_t upper(int64_t at) const { return min(lower(at) + 1, size - 1); }
    // Weight of the latter.
    template <typename T>
    T fraction(int64_t at) const {
        return static_cast<T>(at * step - static_cast<double>(lower(at)));
    }
};

// target = lower + weight * (upper - lower), so that equal pixels stay what they are.
template <typename S, typename L, typename T>
inline void interpolate(const L* lower, const L* upper, T weight, int64_t count, S* target) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
        const T a = widen<L, T>(lower[i]), b = widen<L, T>(upper[i]);
        target[i] = narrow<S, T>(a + weight * (b - a));
    }
}

// The transpose: what target passes back to lower and upper.
template <typename T>
inline void interpolate_backward(const T* target, T weight, int64_t count, T* lower, T* upper) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) lower[i] += (1 - weight) * target[i];
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) upper[i] += weight * target[i];
}

}  // namespace
}  // namespace LDA_AQU_ISA
