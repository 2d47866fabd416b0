// Bilinear interpolation with aligned corners.
#pragma once
#include "../common/scalars.h"

namespace offset_network::LDA_AQU_ISA {
namespace {

// The pixels of the source that a pixel of the resized map lies between, and the weight of `upper`.
template <typename T>
struct Between {
    int64_t lower, upper;
    T weight;
};

// One axis of a resize. Positions are fractions of integers, so that none is rounded.
struct ResizedAxis {
    int64_t source_size, resized_size;

    template <typename T>
    Between<T> at(int64_t pixel) const {
        const int64_t steps = resized_size > 1 ? resized_size - 1 : 1;
        const int64_t position = pixel * (source_size - 1);
        const int64_t lower = position / steps, rest = position % steps;
        return {lower, min(lower + 1, source_size - 1),
                static_cast<T>(rest) / static_cast<T>(steps)};
    }
    int64_t lower(int64_t pixel) const { return at<float>(pixel).lower; }
    int64_t upper(int64_t pixel) const { return at<float>(pixel).upper; }
    // How many pixels of the source `count` consecutive resized pixels lie between, at most.
    int64_t source_pixels(int64_t count) const { return min(source_size, lower(count - 1) + 3); }
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

// The gradients: adds that of the target, weighted, to those of lower and upper.
template <typename T>
inline void interpolate_backward(const T* target, T weight, int64_t count, T* lower, T* upper) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) lower[i] += (1 - weight) * target[i];
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) upper[i] += weight * target[i];
}

}  // namespace
}  // namespace offset_network::LDA_AQU_ISA
