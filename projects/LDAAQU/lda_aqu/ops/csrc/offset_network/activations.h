// GELU and tanh, so written that loops over them become vectors; in double by the C library. NaN
// stays NaN.
#pragma once
#include "../common/scalars.h"

namespace offset_network::LDA_AQU_ISA {
namespace {

constexpr float kTailEnd = 6;  // GELU differs from max(x, 0) by less than 1e-8 beyond it

inline float magnitude(float x) {
    const float a = x < 0 ? -x : x;
    return a > kTailEnd ? kTailEnd : a;
}

// The mass of the normal distribution beyond a, for a in [0, kTailEnd], divided by exp(-a²/2).
//
// A polynomial fitted by least squares, reweighted (Lawson) until the largest error of a times the
// mass was smallest: 2.5e-8, and 7e-8 as rounded here.
inline float scaled_tail(float a) {
    float y = -2.2171913e-07f;
    y = y * a + 5.799372e-06f;
    y = y * a - 6.8248904e-05f;
    y = y * a + 4.8410456e-04f;
    y = y * a - 2.3559255e-03f;
    y = y * a + 8.567822e-03f;
    y = y * a - 2.4958383e-02f;
    y = y * a + 6.1552882e-02f;
    y = y * a - 1.3265194e-01f;
    y = y * a + 2.4994028e-01f;
    y = y * a - 3.9893806e-01f;
    return y * a + 4.9999994e-01f;
}

// x times the mass of the normal distribution below x.
inline float gelu(float x) {
    const float a = magnitude(x);
    return (x > 0 ? x : 0) - a * scaled_tail(a) * exp_negative(-0.5f * a * a);
}
inline double gelu(double x) { return 0.5 * x * __builtin_erfc(-x * 0.70710678118654752); }

// Its derivative: that mass, and x times the density.
inline float gelu_slope(float x) {
    const float a = magnitude(x), power = exp_negative(-0.5f * a * a);
    const float tail = scaled_tail(a) * power, moment = a * power * 0.398942280f;
    return x > 0 ? 1 - tail + moment : tail - moment;
}
inline double gelu_slope(double x) {
    return 0.5 * __builtin_erfc(-x * 0.70710678118654752) +
           x * __builtin_exp(-0.5 * x * x) * 0.39894228040143268;
}

inline float tanh_of(float x) {
    const float a = x < 0 ? -x : x, square = x * x;
    float y = -5.70498872745e-3f;  // the polynomial of Cephes' tanhf
    y = y * square + 2.06390887954e-2f;
    y = y * square - 5.37397155531e-2f;
    y = y * square + 1.33314422036e-1f;
    y = y * square - 3.33332819422e-1f;
    const float near = x + x * square * y;
    const float power = exp_negative(-2 * a), far = (1 - power) / (1 + power);
    return a < 0.625f ? near : x < 0 ? -far : far;
}
inline double tanh_of(double x) { return __builtin_tanh(x); }

}  // namespace
}  // namespace offset_network::LDA_AQU_ISA
