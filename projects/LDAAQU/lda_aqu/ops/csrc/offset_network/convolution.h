// Convolutions of rows of pixels, in vectors over the pixels.
#pragma once
#include "../common/vectors.h"

namespace offset_network::LDA_AQU_ISA {
namespace {

// Outputs that are summed up at once, each for three vectors of pixels or three columns of the
// window: as many as there are registers for, as loads are the bottleneck with fewer.
constexpr int kForwardOutputs = kVectorBytes == 64 ? 9 : 3;  // divides 2 k² for k = 3
constexpr int kBackwardOutputs = kVectorBytes == 64 ? 8 : 4;
constexpr int kCorrelatedOutputs = kVectorBytes == 64 ? 9 : 3;

// Without it the compiler loads v from memory again at each use.
template <typename V>
inline void keep_in_register(V& v) {
#ifdef LDA_AQU_X86
    asm("" : "+v"(v));
#endif
}

// `convolve` for kVectors vectors of pixels, from x on, and kOutputs of the outputs.
template <typename T, int kOutputs, int kVectors>
inline void convolve_vectors(const T* const* rows, int64_t count, int64_t kernel, const T* weights,
                             int64_t outputs, int64_t x, T* out, int64_t out_stride) {
    using V = Vector<T, kVectorBytes>;
    typename V::type total[kOutputs][kVectors] = {};
    for (int64_t r = 0; r < count; ++r)
        for (int64_t k = 0; k < kernel; ++k, weights += outputs) {
            typename V::type pixels[kVectors];
#pragma GCC unroll 9
            for (int i = 0; i < kVectors; ++i) pixels[i] = V::load(rows[r] + x + k + i * V::lanes);
#pragma GCC unroll 9
            for (int o = 0; o < kOutputs; ++o) {
                auto weight = weights[o] - typename V::type{};  // in all lanes
                keep_in_register(weight);
#pragma GCC unroll 9
                for (int i = 0; i < kVectors; ++i) total[o][i] += weight * pixels[i];
            }
        }
#pragma GCC unroll 9
    for (int o = 0; o < kOutputs; ++o)
#pragma GCC unroll 9
        for (int i = 0; i < kVectors; ++i)
            V::store(out + o * out_stride + x + i * V::lanes, total[o][i]);
}

// out[o][x] = sum over r and k of weights[r][k][o] * rows[r][x + k].
//
// x goes up to `width`, rounded up to whole vectors. `count` rows, `kernel` weights each.
template <typename T, int kOutputs>
inline void convolve(const T* const* rows, int64_t count, int64_t kernel, const T* weights,
                     int64_t outputs, int64_t width, T* out, int64_t out_stride,
                     int64_t first = 0) {
    constexpr int64_t lanes = Vector<T, kVectorBytes>::lanes;
    for (; first + kOutputs <= outputs; first += kOutputs) {
        T* const some = out + first * out_stride;
        int64_t x = 0;
        for (; x + 2 * lanes < width; x += 3 * lanes)
            convolve_vectors<T, kOutputs, 3>(rows, count, kernel, weights + first, outputs, x, some,
                                             out_stride);
        for (; x < width; x += lanes)
            convolve_vectors<T, kOutputs, 1>(rows, count, kernel, weights + first, outputs, x, some,
                                             out_stride);
    }
    if constexpr (kOutputs > 1)
        if (first < outputs)
            convolve<T, kOutputs / 2>(rows, count, kernel, weights, outputs, width, out, out_stride,
                                      first);
}

// sums[k][o] += sum over x of row[x + k] * grads[o][x], for kColumns columns k of the window and
// kOutputs of the outputs.
template <typename T, int kOutputs, int kColumns>
inline void correlate_columns(const T* row, const T* grads, int64_t grad_stride, int64_t width,
                              T* sums, int64_t outputs) {
    using V = Vector<T, kVectorBytes>;
    typename V::type total[kColumns * kOutputs] = {};
    for (int64_t x = 0; x < width; x += V::lanes) {
        typename V::type pixels[kColumns];
#pragma GCC unroll 9
        for (int k = 0; k < kColumns; ++k) pixels[k] = V::load(row + x + k);
#pragma GCC unroll 9
        for (int o = 0; o < kOutputs; ++o) {
            auto grad = V::load(grads + o * grad_stride + x);
            keep_in_register(grad);
#pragma GCC unroll 9
            for (int k = 0; k < kColumns; ++k) total[k * kOutputs + o] += pixels[k] * grad;
        }
    }
    constexpr int count = kColumns * kOutputs, fours = count / 4 * 4;
    T added[count];
#pragma GCC unroll 9
    for (int i = 0; i < fours; i += 4) {
        const typename V::type four[4] = {total[i], total[i + 1], total[i + 2], total[i + 3]};
        sum_lanes<T, kVectorBytes>(four, false, added + i);
    }
#pragma GCC unroll 9
    for (int i = fours; i < count; ++i) added[i] = sum_of_lanes<T, kVectorBytes>(total[i]);
    for (int k = 0; k < kColumns; ++k)
        for (int o = 0; o < kOutputs; ++o) sums[k * outputs + o] += added[k * kOutputs + o];
}

// sums[r][k][o] += sum over x of rows[r][x + k] * grads[o][x]: the gradient of convolve's weights.
// From `width` up to whole vectors, grads are zero.
template <typename T, int kOutputs>
inline void correlate(const T* const* rows, int64_t count, int64_t kernel, const T* grads,
                      int64_t grad_stride, int64_t outputs, int64_t width, T* sums,
                      int64_t first = 0) {
    for (; first + kOutputs <= outputs; first += kOutputs) {
        const T* const some = grads + first * grad_stride;
        for (int64_t r = 0; r < count; ++r) {
            T* const sum = sums + r * kernel * outputs + first;
            int64_t k = 0;
            for (; k + 3 <= kernel; k += 3)
                correlate_columns<T, kOutputs, 3>(rows[r] + k, some, grad_stride, width,
                                                  sum + k * outputs, outputs);
            for (; k < kernel; ++k)
                correlate_columns<T, kOutputs, 1>(rows[r] + k, some, grad_stride, width,
                                                  sum + k * outputs, outputs);
        }
    }
    if constexpr (kOutputs > 1)
        if (first < outputs)
            correlate<T, kOutputs / 2>(rows, count, kernel, grads, grad_stride, outputs, width,
                                       sums, first);
}

}  // namespace
}  // namespace offset_network::LDA_AQU_ISA
