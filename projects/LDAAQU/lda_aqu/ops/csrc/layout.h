// Between maps of any strides and rows of channels.
#pragma once
#include <type_traits>

#include "arena.h"
#include "scalars.h"
#include "vectors.h"

namespace LDA_AQU_ISA {
namespace {

constexpr int64_t kTurned = 16;  // pixels, and channels, that are turned over at a time

// Rows of channels of consecutive pixels, from a map in which channels and pixels have any strides.
// Begins to read what is so far `ahead`, in step with reading: more at once would get lost.
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
    T turned[kTurned * kTurned];
    for (int64_t at = 0; at < channels; at += kTurned) {
        const int64_t count = min(kTurned, channels - at);
        for (int64_t first = 0; first < pixels; first += kTurned) {
            const int64_t width = min(kTurned, pixels - first);
            const S* source = map + at * channel_stride + first * pixel_stride;
            if (ahead) prefetch(source + ahead, channel_stride, count, width);
            for (int64_t c = 0; c < count; ++c)
                for (int64_t x = 0; x < width; ++x)
                    turned[c * kTurned + x] = widen<S, T>(source[c * channel_stride + x * pixel_stride]);
            transpose(turned, kTurned, count, width, rows + first * row_stride + at, row_stride);
        }
    }
}

// The way back.
template <typename S, typename T>
inline void store_pixels(const T* rows, int64_t row_stride, int64_t pixels, int64_t channels, S* map,
                         int64_t channel_stride, int64_t pixel_stride) {
    if (channel_stride == 1) {
        for (int64_t x = 0; x < pixels; ++x)
            for (int64_t c = 0; c < channels; ++c)
                map[x * pixel_stride + c] = narrow<S, T>(rows[x * row_stride + c]);
        return;
    }
    if constexpr (std::is_same_v<S, T>)
        if (pixel_stride == 1)
            return transpose(rows, row_stride, pixels, channels, map, channel_stride);
    T turned[kTurned * kTurned];
    for (int64_t at = 0; at < channels; at += kTurned) {
        const int64_t count = min(kTurned, channels - at);
        for (int64_t first = 0; first < pixels; first += kTurned) {
            const int64_t width = min(kTurned, pixels - first);
            transpose(rows + first * row_stride + at, row_stride, width, count, turned, kTurned);
            S* target = map + at * channel_stride + first * pixel_stride;
            for (int64_t c = 0; c < count; ++c) {
                const T* source = turned + c * kTurned;
                S* out = target + c * channel_stride;
                if (pixel_stride == 1)
                    for (int64_t x = 0; x < width; ++x) out[x] = narrow<S, T>(source[x]);
                else
                    for (int64_t x = 0; x < width; ++x) out[x * pixel_stride] = narrow<S, T>(source[x]);
            }
        }
    }
}

}  // namespace
}  // namespace LDA_AQU_ISA
