// The offset network: a depthwise 3 x 3 convolution, layer normalisation over the channels, GELU, a
// k_e x k_e convolution with bias, and theta tanh; and before it, if asked for, the resize of the
// query. See ../offset_network.py.
//
// A unit of work is a band of rows of one group of one image. It goes down row by row, the
// k_e x k_e convolution by tiles of rows; the rows that a convolution reads are kept in rings. A
// row is planar, so that everything is in vectors over pixels, the sums over channels too, and has
// margins of zeros: the convolutions' padding.
#pragma once
#include <omp.h>

#include "activations.h"
#include "arena.h"
#include "convolution.h"
#include "layout.h"
#include "offset_problem.h"
#include "resize.h"
#include "winograd.h"

namespace LDA_AQU_ISA {
namespace {

constexpr int64_t kPixels = 16;    // pixels that are normalised at a time; rows have whole ones
constexpr int64_t kBandRows = 32;  // fixed, as it decides the order of sums

// Rows of a map of `channels` channels and their margins, the last `count` of those computed.
template <typename T>
struct Ring {
    T* base;
    int64_t count, channels, stride, margin;

    // Channel 0, column 0 of row y.
    T* row(int64_t y) const { return whole_row(y) + margin; }
    // All channels and margins of it.
    T* whole_row(int64_t y) const { return base + (y % count + count) % count * row_size(); }
    void clear(int64_t y) const {
        T* const target = whole_row(y);
        for (int64_t i = 0; i < row_size(); ++i) target[i] = 0;
    }
    void clear() const {
        for (int64_t y = 0; y < count; ++y) clear(y);
    }
    int64_t row_size() const { return channels * stride; }
    int64_t size() const { return count * row_size(); }
};

struct Band {
    int64_t index, n, group, first, end;  // rows [first, end)
    bool has(int64_t y) const { return y >= first && y < end; }
};

// Of the k_e x k_e convolution, or its gradient.
template <typename T>
struct Weights {
    T* direct;       // (inputs, k_e, k_e, outputs)
    T* transformed;  // (kProducts, inputs, 3, outputs), where k_e = 3
};

// What a tile of its rows is computed in.
template <typename T>
struct Tile {
    Ring<T> rows;         // the kProducts transformed ones
    const T** addresses;  // (inputs, k_e)
};

// What forward and backward share.
template <typename T>
struct OffsetKernel {
    const OffsetProblem& p;
    const int64_t channels, reach, width;  // of a group; k_e / 2; rounded up to whole kPixels
    const ResizedAxis row_axis, column_axis;  // of a query that is resized
    const T *depthwise, *norm_weight, *norm_bias, *conv_weight, *conv_bias;

    OffsetKernel(const OffsetProblem& problem)
        : p(problem),
          channels(p.depth / p.groups),
          reach(p.kernel_size / 2),
          width(round_up(p.width, kPixels)),
          row_axis{p.in_height, p.height},
          column_axis{p.in_width, p.width},
          depthwise(static_cast<const T*>(p.depthwise)),
          norm_weight(static_cast<const T*>(p.norm_weight)),
          norm_bias(static_cast<const T*>(p.norm_bias)),
          conv_weight(static_cast<const T*>(p.conv_weight)),
          conv_bias(static_cast<const T*>(p.conv_bias)) {}

    int64_t bands_per_map() const { return ceil_div(p.height, kBandRows); }
    int64_t bands() const { return p.batch * p.groups * bands_per_map(); }
    Band band_at(int64_t index) const {
        const int64_t map = index / bands_per_map(), first = index % bands_per_map() * kBandRows;
        return {index, map / p.groups, map % p.groups, first, min(first + kBandRows, p.height)};
    }
    bool is_outside(int64_t y) const { return y < 0 || y >= p.height; }

    Ring<T> take_ring(Arena& arena, int64_t count, int64_t ring_channels) const {
        const int64_t margin = round_up(reach > 1 ? reach : 1, kPixels);
        Ring<T> ring{nullptr, count, ring_channels, width + 2 * margin, margin};
        ring.base = arena.take<T>(ring.size());
        return ring;
    }

    int64_t products() const { return p.kernel_size == 3 ? kProducts : 0; }
    bool has_products(int64_t rows) const { return products() && rows == kTileRows; }

    // Of tiles from row `first` on: the number of rows in the one that ends with row y, or 0.
    static int64_t rows_of_tile(int64_t y, int64_t first, int64_t end) {
        const int64_t rows = (y - first) % kTileRows + 1;
        return rows == kTileRows || y + 1 == end ? rows : 0;
    }

    Weights<T> take_weights(Arena& arena, int64_t inputs, int64_t outputs) const {
        T* const direct = arena.take<T>(inputs * p.kernel_size * p.kernel_size * outputs);
        return {direct, arena.take<T>(products() * inputs * p.kernel_size * outputs)};
    }

    Tile<T> take_tile(Arena& arena, int64_t inputs) const {
        Tile<T> tile;
        tile.rows = take_ring(arena, products(), inputs);
        tile.addresses = arena.take<const T*>(inputs * p.kernel_size);
        return tile;
    }

    void clear_tails(const Ring<T>& ring, int64_t y) const {
        T* const row = ring.row(y);
        for (int64_t c = 0; c < ring.channels; ++c)
            for (int64_t x = p.width; x < width; ++x) row[c * ring.stride + x] = 0;
    }

    // The first pixel of row y, for the band's group.
    template <typename S>
    S* query_row(const Band& band, int64_t y) const {
        const int64_t* stride = p.query_strides;
        return static_cast<S*>(p.query) + band.n * stride[0] + band.group * channels * stride[1] +
               y * stride[2];
    }

    template <typename S>
    void load_query(const Band& band, int64_t y, const Ring<T>& query) const {
        if (is_outside(y)) return query.clear(y);
        const int64_t* stride = p.query_strides;
        const S* map = query_row<S>(band, y);
        // Channels and pixels change places: the rows of `load_pixels` are planes here.
        load_pixels(map, stride[3], stride[1], channels, p.width, query.row(y), query.stride);
        // The row below is next. Its pieces are too short for the processor to foresee.
        if (is_outside(y + 1)) return;
        if (stride[1] == 1)
            prefetch(map + stride[2], stride[3], p.width, channels);
        else
            prefetch(map + stride[2], stride[1], channels, p.width);
    }

    // The hidden row y from the query's rows about it. `normalized` takes what GELU is applied to,
    // without weight and bias, and in its last channel the inverse deviations; or it is null.
    void compute_hidden(int64_t y, const Ring<T>& query, T* block, const Ring<T>& hidden,
                        const Ring<T>* normalized) const {
        if (is_outside(y)) return hidden.clear(y);
        const T* const rows[3] = {query.row(y - 1), query.row(y), query.row(y + 1)};
        const T inverse = 1 / static_cast<T>(channels), epsilon = static_cast<T>(p.epsilon);
        T* const hidden_row = hidden.row(y);
        T* const normalized_row = normalized ? normalized->row(y) : nullptr;
        for (int64_t x = 0; x < width; x += kPixels) {
            T mean[kPixels] = {}, deviation[kPixels] = {};
            for (int64_t c = 0; c < channels; ++c) {
                T* const z = block + c * kPixels;
                convolve_depthwise(rows, c * query.stride + x, depthwise + c * 9, z);
#pragma omp simd
                for (int64_t i = 0; i < kPixels; ++i) mean[i] += z[i];
            }
            for (int64_t i = 0; i < kPixels; ++i) mean[i] *= inverse;
            for (int64_t c = 0; c < channels; ++c) {
                T* const z = block + c * kPixels;
#pragma omp simd
                for (int64_t i = 0; i < kPixels; ++i) {
                    z[i] -= mean[i];
                    deviation[i] += z[i] * z[i];
                }
            }
#pragma omp simd
            for (int64_t i = 0; i < kPixels; ++i)
                deviation[i] = 1 / sqrt_of(deviation[i] * inverse + epsilon);
            for (int64_t c = 0; c < channels; ++c) {
                const T* const z = block + c * kPixels;
                T* const kept =
                    normalized ? normalized_row + c * normalized->stride + x : block + c * kPixels;
                T* const out = hidden_row + c * hidden.stride + x;
#pragma omp simd
                for (int64_t i = 0; i < kPixels; ++i) {
                    kept[i] = z[i] * deviation[i];
                    out[i] = gelu(kept[i] * norm_weight[c] + norm_bias[c]);
                }
            }
            if (normalized) {
                T* const kept = normalized_row + channels * normalized->stride + x;
                for (int64_t i = 0; i < kPixels; ++i) kept[i] = deviation[i];
            }
        }
        clear_tails(hidden, y);
    }

    // kPixels pixels, at `at` of the middle one of three rows.
    static void convolve_depthwise(const T* const* rows, int64_t at, const T* weights, T* out) {
        const T *const above = rows[0] + at, *const middle = rows[1] + at, *const below = rows[2] + at;
#pragma omp simd
        for (int64_t i = 0; i < kPixels; ++i)
            out[i] = weights[0] * above[i - 1] + weights[1] * above[i] + weights[2] * above[i + 1] +
                     weights[3] * middle[i - 1] + weights[4] * middle[i] +
                     weights[5] * middle[i + 1] + weights[6] * below[i - 1] +
                     weights[7] * below[i] + weights[8] * below[i + 1];
    }

    // Where `convolve` reads for row y of its result: (channels, k_e) rows.
    void find_rows(const Ring<T>& source, int64_t y, const T** rows) const {
        for (int64_t c = 0; c < source.channels; ++c)
            for (int64_t k = 0; k < p.kernel_size; ++k)
                *rows++ = source.row(y + k - reach) + c * source.stride - reach;
    }

    // Rows [y, y + count) of the convolution of a map: (count, outputs, width), in the place of the
    // products, (kProducts, outputs, width).
    template <int kOutputs>
    void convolve_rows(const Ring<T>& source, int64_t y, int64_t count, const Weights<T>& weights,
                       int64_t outputs, const Tile<T>& tile, T* out) const {
        if (has_products(count) && convolve_tile<kOutputs>(source, y, weights.transformed, outputs,
                                                           tile, out))
            return;
        for (int64_t i = 0; i < count; ++i) {
            find_rows(source, y + i, tile.addresses);
            convolve<T, kOutputs>(tile.addresses, source.channels * p.kernel_size, p.kernel_size,
                                  weights.direct, outputs, p.width, out + i * outputs * width,
                                  width);
        }
    }

    // False if they are not finite: what is not spreads here over all rows, also over those that do
    // not see it.
    template <int kOutputs>
    bool convolve_tile(const Ring<T>& source, int64_t y, const T* weights, int64_t outputs,
                       const Tile<T>& tile, T* out) const {
        transform_tile(source, y, tile.rows);
        const int64_t inputs = source.channels;
        for (int64_t i = 0; i < kProducts; ++i, weights += inputs * 3 * outputs) {
            find_products(tile, i);
            convolve<T, kOutputs>(tile.addresses, inputs, 3, weights, outputs, width,
                                  out + i * outputs * width, width);
        }
        return combine_products(out, outputs * width);
    }

    // The rows that those from y on are computed from.
    static void transform_tile(const Ring<T>& source, int64_t y, const Ring<T>& transformed) {
        const T* rows[kProducts];
        T* out[kProducts];
        for (int64_t i = 0; i < kProducts; ++i) {
            rows[i] = source.whole_row(y + i - 1);
            out[i] = transformed.whole_row(i);
        }
        transform_rows(rows, source.row_size(), out);
    }

    // Where `convolve` reads for product i: (channels) rows.
    static void find_products(const Tile<T>& tile, int64_t i) {
        for (int64_t c = 0; c < tile.rows.channels; ++c)
            tile.addresses[c] = tile.rows.row(i) + c * tile.rows.stride - 1;
    }
};

}  // namespace
}  // namespace LDA_AQU_ISA
