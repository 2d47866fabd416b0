// The offset network: a depthwise 3 x 3 convolution, layer normalisation over the channels, GELU, a
// k_e x k_e convolution with bias, and theta tanh; and before it, if asked for, the resize of the
// query. See ../../offset_network.py.
//
// A thread computes a band at a time, row by row from the top, the k_e x k_e convolution in steps
// of several rows. The rows that a convolution reads are kept in rings. A row is planar, so that
// everything is in vectors over pixels, the sums over channels too, and has margins of zeros: the
// convolutions' padding.
#pragma once
#include <omp.h>

#include "../common/arena.h"
#include "../common/layout.h"
#include "activations.h"
#include "convolution.h"
#include "problem.h"
#include "resize.h"
#include "winograd.h"

namespace offset_network::LDA_AQU_ISA {
namespace {

constexpr int64_t kBandRows = 32;  // the same for all sizes, as the order of sums depends on it

// The last `count` rows that were computed of a map of `channels` channels, with their margins.
template <typename T>
struct Ring {
    T* base;
    int64_t count, channels, stride, margin;

    // Channel 0, column 0 of row y.
    T* row(int64_t y) const { return whole_row(y) + margin; }
    // Row y with all its channels and margins.
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

// Rows [first, end) of one group of image n.
struct Band {
    int64_t index, n, group, first, end;
    bool has(int64_t y) const { return y >= first && y < end; }
};

// The weights of the k_e x k_e convolution, or of its transpose.
template <typename T>
struct Weights {
    T* direct;       // (inputs, k_e, k_e, outputs)
    T* transformed;  // (kProducts, inputs, 3, outputs), where k_e = 3
};

// What a step of the k_e x k_e convolution needs.
template <typename T>
struct WinogradScratch {
    Ring<T> rows;         // kProducts transformed rows
    const T** addresses;  // (inputs, k_e): of the rows that `convolve` reads
};

// What forward and backward share.
template <typename T>
struct Kernel {
    const Problem& p;
    const int64_t channels;                   // of a group
    const int64_t reach;                      // k_e / 2
    const int64_t padded_width;               // p.width, rounded up to whole strips
    const ResizedAxis row_axis, column_axis;  // of a query that is resized
    const T *depthwise, *norm_weight, *norm_bias, *conv_weight, *conv_bias;

    Kernel(const Problem& problem)
        : p(problem),
          channels(p.depth / p.groups),
          reach(p.kernel_size / 2),
          padded_width(round_up(p.width, kStrip)),
          row_axis{p.source_height, p.height},
          column_axis{p.source_width, p.width},
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
        const int64_t margin = round_up(reach > 1 ? reach : 1, kStrip);
        Ring<T> ring{nullptr, count, ring_channels, padded_width + 2 * margin, margin};
        ring.base = arena.take<T>(ring.size());
        return ring;
    }

    int64_t products() const { return p.kernel_size == 3 ? kProducts : 0; }
    bool is_winograd_step(int64_t rows) const { return products() && rows == kStepRows; }

    // Rows [first, end) are computed in steps: how many rows has the one that ends with row y, or
    // 0.
    static int64_t rows_of_step(int64_t y, int64_t first, int64_t end) {
        const int64_t rows = (y - first) % kStepRows + 1;
        return rows == kStepRows || y + 1 == end ? rows : 0;
    }

    Weights<T> take_weights(Arena& arena, int64_t inputs, int64_t outputs) const {
        T* const direct = arena.take<T>(inputs * p.kernel_size * p.kernel_size * outputs);
        return {direct, arena.take<T>(products() * inputs * p.kernel_size * outputs)};
    }

    WinogradScratch<T> take_winograd_scratch(Arena& arena, int64_t inputs) const {
        WinogradScratch<T> scratch;
        scratch.rows = take_ring(arena, products(), inputs);
        scratch.addresses = arena.take<const T*>(inputs * p.kernel_size);
        return scratch;
    }

    // Row y from the map's width up to whole strips.
    void clear_tails(const Ring<T>& ring, int64_t y) const {
        T* const row = ring.row(y);
        for (int64_t c = 0; c < ring.channels; ++c)
            for (int64_t x = p.width; x < padded_width; ++x) row[c * ring.stride + x] = 0;
    }

    // The first pixel of row y and the first channel of the band's group.
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
        // Channels and pixels are exchanged: what `load_pixels` calls rows are planes here.
        load_pixels(map, stride[3], stride[1], channels, p.width, query.row(y), query.stride);
        // The row below is next. Its runs are too short for the processor to foresee it.
        if (is_outside(y + 1)) return;
        if (stride[1] == 1)
            prefetch(map + stride[2], stride[3], p.width, channels);
        else
            prefetch(map + stride[2], stride[1], channels, p.width);
    }

    // Row y of the hidden map, what GELU returns, from the query's rows about it. `normalized`,
    // unless it is null, takes the normalised map, without weight and bias, and in its last channel
    // the inverse deviations. `strip` is (c, kStrip).
    void compute_hidden(int64_t y, const Ring<T>& query, T* strip, const Ring<T>& hidden,
                        const Ring<T>* normalized) const {
        if (is_outside(y)) return hidden.clear(y);
        const T* const rows[3] = {query.row(y - 1), query.row(y), query.row(y + 1)};
        const T inverse = 1 / static_cast<T>(channels), epsilon = static_cast<T>(p.epsilon);
        T* const hidden_row = hidden.row(y);
        T* const normalized_row = normalized ? normalized->row(y) : nullptr;
        for (int64_t x = 0; x < padded_width; x += kStrip) {
            T mean[kStrip] = {}, deviation[kStrip] = {};
            for (int64_t c = 0; c < channels; ++c) {
                T* const z = strip + c * kStrip;
                convolve_depthwise(rows, c * query.stride + x, depthwise + c * 9, z);
#pragma omp simd
                for (int64_t i = 0; i < kStrip; ++i) mean[i] += z[i];
            }
            for (int64_t i = 0; i < kStrip; ++i) mean[i] *= inverse;
            for (int64_t c = 0; c < channels; ++c) {
                T* const z = strip + c * kStrip;
#pragma omp simd
                for (int64_t i = 0; i < kStrip; ++i) {
                    z[i] -= mean[i];
                    deviation[i] += z[i] * z[i];
                }
            }
#pragma omp simd
            for (int64_t i = 0; i < kStrip; ++i)
                deviation[i] = 1 / sqrt_of(deviation[i] * inverse + epsilon);
            for (int64_t c = 0; c < channels; ++c) {
                const T* const z = strip + c * kStrip;
                T* const kept =
                    normalized ? normalized_row + c * normalized->stride + x : strip + c * kStrip;
                T* const out = hidden_row + c * hidden.stride + x;
#pragma omp simd
                for (int64_t i = 0; i < kStrip; ++i) {
                    kept[i] = z[i] * deviation[i];
                    out[i] = gelu(kept[i] * norm_weight[c] + norm_bias[c]);
                }
            }
            if (normalized) {
                T* const kept = normalized_row + channels * normalized->stride + x;
                for (int64_t i = 0; i < kStrip; ++i) kept[i] = deviation[i];
            }
        }
        clear_tails(hidden, y);
    }

    // kStrip pixels, from `at` of the middle one of three rows on.
    static void convolve_depthwise(const T* const* rows, int64_t at, const T* weights, T* out) {
        const T *const above = rows[0] + at, *const middle = rows[1] + at,
                       *const below = rows[2] + at;
#pragma omp simd
        for (int64_t i = 0; i < kStrip; ++i)
            out[i] = weights[0] * above[i - 1] + weights[1] * above[i] + weights[2] * above[i + 1] +
                     weights[3] * middle[i - 1] + weights[4] * middle[i] +
                     weights[5] * middle[i + 1] + weights[6] * below[i - 1] +
                     weights[7] * below[i] + weights[8] * below[i + 1];
    }

    // Fills in the (channels, k_e) addresses that `convolve` reads for row y of its result.
    void find_addresses(const Ring<T>& source, int64_t y, const T** addresses) const {
        for (int64_t c = 0; c < source.channels; ++c)
            for (int64_t k = 0; k < p.kernel_size; ++k)
                *addresses++ = source.row(y + k - reach) + c * source.stride - reach;
    }

    // Rows [y, y + count) of the convolution of a map, (count, outputs, padded_width). `out` has
    // space for the products, (kProducts, outputs, padded_width).
    template <int kOutputs>
    void convolve_rows(const Ring<T>& source, int64_t y, int64_t count, const Weights<T>& weights,
                       int64_t outputs, const WinogradScratch<T>& scratch, T* out) const {
        if (is_winograd_step(count) &&
            convolve_step<kOutputs>(source, y, weights.transformed, outputs, scratch, out))
            return;
        for (int64_t i = 0; i < count; ++i) {
            find_addresses(source, y + i, scratch.addresses);
            convolve<T, kOutputs>(scratch.addresses, source.channels * p.kernel_size, p.kernel_size,
                                  weights.direct, outputs, p.width,
                                  out + i * outputs * padded_width, padded_width);
        }
    }

    // The rows of a step by Winograd's products. False if a result is not finite: then what is not
    // finite in the source may have spread to rows of the step whose windows do not include it.
    template <int kOutputs>
    bool convolve_step(const Ring<T>& source, int64_t y, const T* weights, int64_t outputs,
                       const WinogradScratch<T>& scratch, T* out) const {
        transform_step(source, y, scratch.rows);
        const int64_t inputs = source.channels;
        for (int64_t i = 0; i < kProducts; ++i, weights += inputs * 3 * outputs) {
            find_product_addresses(scratch, i);
            convolve<T, kOutputs>(scratch.addresses, inputs, 3, weights, outputs, padded_width,
                                  out + i * outputs * padded_width, padded_width);
        }
        return combine_products(out, outputs * padded_width);
    }

    // The transformed rows of the step whose first row is y.
    static void transform_step(const Ring<T>& source, int64_t y, const Ring<T>& transformed) {
        const T* rows[kProducts];
        T* out[kProducts];
        for (int64_t i = 0; i < kProducts; ++i) {
            rows[i] = source.whole_row(y + i - 1);
            out[i] = transformed.whole_row(i);
        }
        transform_rows(rows, source.row_size(), out);
    }

    // Fills in the (channels) addresses that `convolve` reads for product i.
    static void find_product_addresses(const WinogradScratch<T>& scratch, int64_t i) {
        for (int64_t c = 0; c < scratch.rows.channels; ++c)
            scratch.addresses[c] = scratch.rows.row(i) + c * scratch.rows.stride - 1;
    }
};

}  // namespace
}  // namespace offset_network::LDA_AQU_ISA
