// Winograd's minimal filtering of columns: a step computes four rows of a convolution with three
// rows of weights from six products of rows instead of twelve. Along the rows nothing changes.
//
// With six rows d of a map and three rows w of weights, the four of the result are
// A' [(G w) * (B' d)], where * convolves rows with rows. The gradient of w is G' [(A g) * (B' d)],
// where g is that of the result and * correlates. Lavin and Gray, "Fast Algorithms for
// Convolutional Neural Networks", CVPR 2016.
//
// The matrices evaluate and interpolate polynomials at 0, ±a, ±b and infinity. In float32 these a
// and b make the error 1.2 times that of the direct sum (RMS), the customary 1 and 2 make it 1.8
// times. The error of a result is relative to the largest of the step's six rows, also of those
// that do not enter the result. All factors but those of G are exact.
#pragma once
#include "../common/scalars.h"

namespace offset_network::LDA_AQU_ISA {
namespace {

constexpr int64_t kStepRows = 4;  // rows of the result that a step computes
constexpr int64_t kProducts = 6;  // convolutions of transformed rows that it takes

constexpr double kInner = 0.625, kOuter = 1.5;  // a and b
constexpr double kInnerSquare = kInner * kInner, kOuterSquare = kOuter * kOuter;
constexpr double kInnerScale = 0.5 / (kInnerSquare * (kInnerSquare - kOuterSquare));
constexpr double kOuterScale = 0.5 / (kOuterSquare * (kOuterSquare - kInnerSquare));
constexpr double kWeightTransform[kProducts][3] = {
    // G
    {1 / (kInnerSquare * kOuterSquare), 0, 0},
    {kInnerScale, kInnerScale * kInner, kInnerScale * kInnerSquare},
    {kInnerScale, -kInnerScale * kInner, kInnerScale * kInnerSquare},
    {kOuterScale, kOuterScale * kOuter, kOuterScale * kOuterSquare},
    {kOuterScale, -kOuterScale * kOuter, kOuterScale * kOuterSquare},
    {0, 0, 1},
};

// G: from weights (channels, 3, count) to those of the products, (kProducts, channels, count).
template <typename T>
inline void transform_weights(const T* weights, int64_t channels, int64_t count, T* out) {
    for (const auto& factors : kWeightTransform)
        for (int64_t c = 0; c < channels; ++c, out += count)
            for (int64_t i = 0; i < count; ++i) {
                const T* const w = weights + c * 3 * count + i;
                out[i] = static_cast<T>(factors[0] * w[0] + factors[1] * w[count] +
                                        factors[2] * w[2 * count]);
            }
}

// G': adds the gradients of the products' weights, transformed back, to those of the weights.
template <typename T>
inline void add_weight_grads(const T* grads, int64_t channels, int64_t count, T* out) {
    for (const auto& factors : kWeightTransform)
        for (int64_t c = 0; c < channels; ++c, grads += count)
            for (int64_t k = 0; k < 3; ++k)
                for (int64_t i = 0; i < count; ++i)
                    out[(c * 3 + k) * count + i] += static_cast<T>(factors[k]) * grads[i];
}

// B': from six rows of `count` numbers to the six that the products convolve.
template <typename T>
inline void transform_rows(const T* const* rows, int64_t count, T* const* out) {
    constexpr T a = kInner, b = kOuter, aa = kInnerSquare, bb = kOuterSquare;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
        const T inner_even = rows[4][i] - bb * rows[2][i], inner_odd = rows[3][i] - bb * rows[1][i];
        const T outer_even = rows[4][i] - aa * rows[2][i], outer_odd = rows[3][i] - aa * rows[1][i];
        out[0][i] = inner_even - aa * (rows[2][i] - bb * rows[0][i]);
        out[1][i] = inner_even + a * inner_odd;
        out[2][i] = inner_even - a * inner_odd;
        out[3][i] = outer_even + b * outer_odd;
        out[4][i] = outer_even - b * outer_odd;
        out[5][i] = rows[5][i] - aa * rows[3][i] - bb * outer_odd;
    }
}

// A: from the gradients of four rows of the result to those of the six products.
template <typename T>
inline void transform_grads(const T* const* grads, int64_t count, T* const* out) {
    constexpr T a = kInner, b = kOuter, aa = kInnerSquare, bb = kOuterSquare;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
        const T inner_even = grads[0][i] + aa * grads[2][i];
        const T inner_odd = a * (grads[1][i] + aa * grads[3][i]);
        const T outer_even = grads[0][i] + bb * grads[2][i];
        const T outer_odd = b * (grads[1][i] + bb * grads[3][i]);
        out[0][i] = grads[0][i];
        out[1][i] = inner_even + inner_odd;
        out[2][i] = inner_even - inner_odd;
        out[3][i] = outer_even + outer_odd;
        out[4][i] = outer_even - outer_odd;
        out[5][i] = grads[3][i];
    }
}

// A': replaces the first four of six products, rows of `count` numbers one after the other, by the
// four rows of the result. False if any number of these is not finite.
template <typename T>
inline bool combine_products(T* products, int64_t count) {
    constexpr T a = kInner, b = kOuter, aa = kInnerSquare, bb = kOuterSquare;
    T check = 0;
#pragma omp simd reduction(+ : check)
    for (int64_t i = 0; i < count; ++i) {
        T* const at = products + i;
        const T inner_sum = at[count] + at[2 * count], inner_odd = a * (at[count] - at[2 * count]);
        const T outer_sum = at[3 * count] + at[4 * count];
        const T outer_odd = b * (at[3 * count] - at[4 * count]);
        const T rows[kStepRows] = {at[0] + inner_sum + outer_sum, inner_odd + outer_odd,
                                   aa * inner_sum + bb * outer_sum,
                                   aa * inner_odd + bb * outer_odd + at[5 * count]};
        for (int64_t row = 0; row < kStepRows; ++row) {
            at[row * count] = rows[row];
            check += 0 * rows[row];
        }
    }
    return check == 0;
}

}  // namespace
}  // namespace offset_network::LDA_AQU_ISA
