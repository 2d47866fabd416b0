// Bilinear interpolation with aligned corners.
#pragma once
#include "scalars.h"

namespace LDA_AQU_ISA {
namespace {

// The pixels, before a resize, that one after it lies between, and the weight of the latter.
template <typename T>
struct Between {
    int64_t lower, upper;
    T weight;
};

// One axis of a map that is resized. Positions are fractions of integers: none is rounded.
struct ResizedAxis {
    int64_t size, resized;

    template <typename T>
    Between<T> at(int64_t pixel) const {
        const int64_t steps = resized > 1 ? resized - 1 : 1, position = pixel * (size - 1);
        const int64_t lower = position / steps, rest = position % steps;
        return {lower, min(lower + 1, size - 1), static_cast<T>(rest) / static_cast<T>(steps)};
    }
    int64_t lower(int64_t pixel) const { return at<float>(pixel).lower; }
    int64_t upper(int64_t pixel) const { return at<float>(pixel).upper; }
    // Pixels that so many consecutive ones are resized from, at most.
    int64_t reach(int64_t count) const { return min(size, lower(count - 1) + 3); }
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
