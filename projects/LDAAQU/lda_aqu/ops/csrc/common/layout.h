// Copies between maps of any strides and rows of channels, with conversion of the dtype.
#pragma once
#include <type_traits>

#include "scalars.h"
#include "vectors.h"

namespace {

// Prefetches rows of contiguous elements.
template <typename S>
inline void prefetch(const S* first, int64_t row_stride, int64_t rows, int64_t length) {
    constexpr int64_t line = 64 / sizeof(S);
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = 0; i < length; i += line)
            __builtin_prefetch(first + r * row_stride + i, 0, 2);
}

// Rows of channels of consecutive pixels, from a map in which channels and pixels have any strides.
// Prefetches what is `ahead` elements after what it reads, unless that is 0; in step with reading,
// as the processor drops prefetches that are too many at once.
template <typename S, typename T>
inline void load_pixels(const S* map, int64_t channel_stride, int64_t pixel_stride, int64_t pixels,
                        int64_t channels, T* rows, int64_t row_stride, int64_t ahead = 0) {
    if (channel_stride == 1) {
        for (int64_t x = 0; x < pixels; ++x) {
            if (ahead) prefetch(map + x * pixel_stride + ahead, 0, 1, channels);
            for (int64_t c = 0; c < channels; ++c)
                rows[x * row_stride + c] = widen<S, T>(map[x * pixel_stride + c]);
        }
        return;
    }
    if constexpr (std::is_same_v<S, T>)
        if (pixel_stride == 1)
            return transpose(map, channel_stride, channels, pixels, rows, row_stride, ahead);
    T square[kStrip * kStrip];
    for (int64_t at = 0; at < channels; at += kStrip) {
        const int64_t count = min(kStrip, channels - at);
        for (int64_t first = 0; first < pixels; first += kStrip) {
            const int64_t width = min(kStrip, pixels - first);
            const S* source = map + at * channel_stride + first * pixel_stride;
            if (ahead) prefetch(source + ahead, channel_stride, count, width);
            for (int64_t c = 0; c < count; ++c)
                for (int64_t x = 0; x < width; ++x)
                    square[c * kStrip + x] =
                        widen<S, T>(source[c * channel_stride + x * pixel_stride]);
            transpose(square, kStrip, count, width, rows + first * row_stride + at, row_stride);
        }
    }
}

// The inverse of load_pixels: from rows of channels to a map.
template <typename S, typename T>
inline void store_pixels(const T* rows, int64_t row_stride, int64_t pixels, int64_t channels,
                         S* map, int64_t channel_stride, int64_t pixel_stride) {
    if (channel_stride == 1) {
        for (int64_t x = 0; x < pixels; ++x)
            for (int64_t c = 0; c < channels; ++c)
                map[x * pixel_stride + c] = narrow<S, T>(rows[x * row_stride + c]);
        return;
    }
    if constexpr (std::is_same_v<S, T>)
        if (pixel_stride == 1)
            return transpose(rows, row_stride, pixels, channels, map, channel_stride);
    T square[kStrip * kStrip];
    for (int64_t at = 0; at < channels; at += kStrip) {
        const int64_t count = min(kStrip, channels - at);
        for (int64_t first = 0; first < pixels; first += kStrip) {
            const int64_t width = min(kStrip, pixels - first);
            transpose(rows + first * row_stride + at, row_stride, width, count, square, kStrip);
            S* target = map + at * channel_stride + first * pixel_stride;
            for (int64_t c = 0; c < count; ++c) {
                const T* source = square + c * kStrip;
                S* out = target + c * channel_stride;
                if (pixel_stride == 1)
                    for (int64_t x = 0; x < width; ++x) out[x] = narrow<S, T>(source[x]);
                else
                    for (int64_t x = 0; x < width; ++x)
                        out[x * pixel_stride] = narrow<S, T>(source[x]);
            }
        }
    }
}

}  // namespace
