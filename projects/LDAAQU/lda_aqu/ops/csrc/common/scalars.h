// Arithmetic and conversions of single numbers, so written that loops over them become vectors.
#pragma once
#include <cstdint>
#include <cstring>

namespace {

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

struct BFloat16 { uint16_t bits; };

template <typename S, typename T>
inline T widen(S x) { return static_cast<T>(x); }
template <>
inline float widen<BFloat16, float>(BFloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

template <typename S, typename T>
inline S narrow(T x) { return static_cast<S>(x); }
template <>
inline BFloat16 narrow<BFloat16, float>(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (x != x) return {static_cast<uint16_t>(bits >> 16 | 0x40)};  // NaN stays NaN
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};  // to nearest even
}

// exp(x) for x <= 0, so written that loops over it become vectors. NaN stays NaN.
inline float exp_negative(float x) {
    x = x < -87.0f ? -87.0f : x;
    // The integer part of x / ln 2 is in its low bits.
    const float shifted = x * 1.44269504f + 12582912.0f;
    const float n = shifted - 12582912.0f;
    const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
    float y = 1.0f / 5040;
    y = y * r + 1.0f / 720;
    y = y * r + 1.0f / 120;
    y = y * r + 1.0f / 24;
    y = y * r + 1.0f / 6;
    y = y * r + 0.5f;
    y = y * r + 1.0f;
    y = y * r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, 4);
    bits = (bits << 23) + 0x3f800000u;
    float power;
    memcpy(&power, &bits, 4);
    return y * power;
}
inline double exp_negative(double x) { return __builtin_exp(x); }

inline float floor_of(float x) { return __builtin_floorf(x); }
inline double floor_of(double x) { return __builtin_floor(x); }
inline double sqrt_of(double x) { return __builtin_sqrt(x); }

}  // namespace
