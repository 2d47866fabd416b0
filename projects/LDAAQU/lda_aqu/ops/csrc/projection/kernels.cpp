// Layer normalisation over the channels of each pixel, without weight and bias, from maps of any
// strides to rows of channels and back. Compiled once for each instruction set; see
// ../README.md.
#include "../common/dtypes.h"
#include "../common/layout.h"
#include "problem.h"

namespace projection::LDA_AQU_ISA {
namespace {

// Calls visit(map, i, length) for runs of at most kStrip pixels [i, i + length) of the problem.
template <typename S, typename F>
void for_runs(const Problem& p, F visit) {
    // A run may go across rows that have no gaps between them.
    const bool is_dense = p.map_strides[2] == p.width * p.map_strides[3];
    const int64_t width = is_dense ? p.height * p.width : p.width;
    const int64_t height = is_dense ? 1 : p.height;
#pragma omp parallel for num_threads(static_cast<int>(p.threads)) schedule(static)
    for (int64_t begin = 0; begin < p.count; begin += kStrip)
        for (int64_t i = begin, end = min(begin + kStrip, p.count); i < end;) {
            const int64_t x = (p.first + i) % width, y = (p.first + i) / width;
            const int64_t length = min(end - i, width - x);
            visit(static_cast<S*>(p.map) + y / height * p.map_strides[0] +
                      y % height * p.map_strides[2] + x * p.map_strides[3],
                  i, length);
            i += length;
        }
}

template <typename T, typename S>
void standardize(const Problem& p) {
    for_runs<S>(p, [&](S* map, int64_t first, int64_t length) {
        T* const rows = static_cast<T*>(p.normalized) + first * p.channels;
        load_pixels(map, p.map_strides[1], p.map_strides[3], length, p.channels, rows, p.channels);
        // The processor does not foresee the next run: those of a plane are too short.
        if (p.map_strides[1] != 1)
            prefetch(map + length * p.map_strides[3], p.map_strides[1], p.channels, kStrip);
        for (int64_t i = 0; i < length; ++i) {
            T* const row = rows + i * p.channels;
            T mean = 0, square = 0;
#pragma omp simd reduction(+ : mean)
            for (int64_t c = 0; c < p.channels; ++c) mean += row[c];
            mean /= static_cast<T>(p.channels);
#pragma omp simd reduction(+ : square)
            for (int64_t c = 0; c < p.channels; ++c) square += (row[c] - mean) * (row[c] - mean);
            const T inverse =
                1 / sqrt_of(square / static_cast<T>(p.channels) + static_cast<T>(p.epsilon));
            for (int64_t c = 0; c < p.channels; ++c) row[c] = (row[c] - mean) * inverse;
            static_cast<T*>(p.inverse)[first + i] = inverse;
        }
    });
}

template <typename T, typename S>
void standardize_backward(const Problem& p) {
    for_runs<S>(p, [&](S* map, int64_t first, int64_t length) {
        T* const rows = static_cast<T*>(p.grad) + first * p.channels;
        for (int64_t i = 0; i < length; ++i) {
            T* const grad = rows + i * p.channels;
            const T* const row = static_cast<const T*>(p.normalized) + (first + i) * p.channels;
            T mean = 0, moment = 0;
#pragma omp simd reduction(+ : mean, moment)
            for (int64_t c = 0; c < p.channels; ++c) {
                mean += grad[c];
                moment += grad[c] * row[c];
            }
            mean /= static_cast<T>(p.channels);
            moment /= static_cast<T>(p.channels);
            const T inverse = static_cast<const T*>(p.inverse)[first + i];
            for (int64_t c = 0; c < p.channels; ++c)
                grad[c] = inverse * (grad[c] - mean - row[c] * moment);
        }
        store_pixels(rows, p.channels, length, p.channels, map, p.map_strides[1], p.map_strides[3]);
    });
}

}  // namespace

void standardize(const Problem& p) {
    with_types_of(p.dtype, [&p](auto types) {
        standardize<typename decltype(types)::T, typename decltype(types)::S>(p);
    });
}

void standardize_backward(const Problem& p) {
    with_types_of(p.dtype, [&p](auto types) {
        standardize_backward<typename decltype(types)::T, typename decltype(types)::S>(p);
    });
}

}  // namespace projection::LDA_AQU_ISA
