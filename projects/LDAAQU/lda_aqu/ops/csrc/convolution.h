// Convolutions of rows of pixels, in vectors over the pixels.
#pragma once
#include "vectors.h"

namespace LDA_AQU_ISA {
namespace {

// Outputs that are summed up at once, each in a register.
constexpr int kConvolved = kVectorBytes == 64 ? 18 : 9;  // of the 2 k² of a 3 x 3 window
constexpr int kConvolvedBack = kVectorBytes == 64 ? 16 : 8;
constexpr int kCorrelated = kVectorBytes == 64 ? 9 : 3;  // with three taps each

// out[o][x] = sum over r and k of weights[r][k][o] * rows[r][x + k].
//
// x goes up to `width`, rounded up to whole vectors. `count` rows, `kernel` weights each.
template <typename T, int kOutputs>
inline void convolve(const T* const* rows, int64_t count, int64_t kernel, const T* weights,
                     int64_t outputs, int64_t width, T* out, int64_t out_stride, int64_t first = 0) {
    using V = Vector<T, kVectorBytes>;
    for (; first + kOutputs <= outputs; first += kOutputs)
        for (int64_t x = 0; x < width; x += V::lanes) {
            typename V::type total[kOutputs] = {};
            const T* w = weights + first;
            for (int64_t r = 0; r < count; ++r)
                for (int64_t k = 0; k < kernel; ++k, w += outputs) {
                    const auto pixels = V::load(rows[r] + x + k);
#pragma GCC unroll 32
                    for (int o = 0; o < kOutputs; ++o) total[o] += w[o] * pixels;
                }
#pragma GCC unroll 32
            for (int o = 0; o < kOutputs; ++o) V::store(out + (first + o) * out_stride + x, total[o]);
        }
    if constexpr (kOutputs > 1)
        if (first < outputs)
            convolve<T, kOutputs / 2>(rows, count, kernel, weights, outputs, width, out, out_stride,
                                      first);
}

// Rows of pixels, and the gradients that came back to where they were read: (outputs) rows, each
// `stride` after the one before.
template <typename T>
struct Correlated {
    const T* const* rows;
    const T* grads;
    int64_t stride;
};

// sums[k][o] += sum over pairs and x of rows[r][x + k] * grads[o][x], each lane of the vectors by
// itself, for some of the taps and outputs.
template <typename T, int kOutputs, int kTaps>
inline void correlate_tile(const Correlated<T>* pairs, int64_t num_pairs, int64_t r, int64_t tap,
                           int64_t output, int64_t width, T* sums, int64_t tap_stride) {
    using V = Vector<T, kVectorBytes>;
    typename V::type total[kTaps][kOutputs] = {};
    for (int64_t pair = 0; pair < num_pairs; ++pair) {
        const int64_t stride = pairs[pair].stride;
        const T* const row = pairs[pair].rows[r] + tap;
        const T* const grads = pairs[pair].grads + output * stride;
        for (int64_t x = 0; x < width; x += V::lanes) {
            typename V::type pixels[kTaps];
#pragma GCC unroll 9
            for (int k = 0; k < kTaps; ++k) pixels[k] = V::load(row + x + k);
#pragma GCC unroll 9
            for (int o = 0; o < kOutputs; ++o) {
                auto grad = V::load(grads + o * stride + x);
#ifdef LDA_AQU_X86
                asm("" : "+v"(grad));  // in a register: else it is loaded again for each tap
#endif
#pragma GCC unroll 9
                for (int k = 0; k < kTaps; ++k) total[k][o] += pixels[k] * grad;
            }
        }
    }
#pragma GCC unroll 9
    for (int k = 0; k < kTaps; ++k)
#pragma GCC unroll 9
        for (int o = 0; o < kOutputs; ++o) {
            T* const sum = sums + (tap + k) * tap_stride + (output + o) * V::lanes;
            V::store(sum, V::load(sum) + total[k][o]);
        }
}

// sums[r][k][o] += sum over pairs and x of rows[r][x + k] * grads[o][x], each lane of the vectors by
// itself: the gradient of convolve's weights. Grads are zero beyond `width`, up to whole vectors.
template <typename T, int kOutputs>
inline void correlate(const Correlated<T>* pairs, int64_t num_pairs, int64_t count, int64_t kernel,
                      int64_t outputs, int64_t width, T* sums, int64_t first = 0) {
    const int64_t tap_stride = outputs * Vector<T, kVectorBytes>::lanes;
    for (; first + kOutputs <= outputs; first += kOutputs)
        for (int64_t r = 0; r < count; ++r) {
            T* const sum = sums + r * kernel * tap_stride;
            int64_t k = 0;
            for (; k + 3 <= kernel; k += 3)
                correlate_tile<T, kOutputs, 3>(pairs, num_pairs, r, k, first, width, sum, tap_stride);
            for (; k < kernel; ++k)
                correlate_tile<T, kOutputs, 1>(pairs, num_pairs, r, k, first, width, sum, tap_stride);
        }
    if constexpr (kOutputs > 1)
        if (first < outputs)
            correlate<T, kOutputs / 2>(pairs, num_pairs, count, kernel, outputs, width, sums, first);
}

}  // namespace
}  // namespace LDA_AQU_ISA
