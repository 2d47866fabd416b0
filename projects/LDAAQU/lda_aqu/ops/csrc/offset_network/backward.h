// The gradients of the offset network. What each band adds to those of the parameters is kept apart
// and summed up at the end in the order of the bands, so that the sums do not depend on the
// threads.
#pragma once
#include "kernel.h"

namespace offset_network::LDA_AQU_ISA {
namespace {

template <typename T>
struct Backward : Kernel<T> {
    using Base = Kernel<T>;
    using Base::channels;
    using Base::p;
    using Base::padded_width;
    using Base::reach;
    static constexpr int64_t lanes = Vector<T, kVectorBytes>::lanes;

    struct Scratch {
        Ring<T> query, hidden, normalized;
        Ring<T> grad_predicted;  // before tanh
        Ring<T> grad_depthwise;  // of the depthwise convolution's result
        T* strip;                // (c, kStrip)
        T* grad_hidden;          // (kProducts, c, padded_width)
        T* grad_query_row;       // (X, c)
        T* grad_blended;         // (W, c): of two rows of the source, interpolated
        WinogradScratch<T> hidden_winograd, grad_winograd;
        T* sums;          // (parameters()): of the band
        T* product_sums;  // (kProducts, c, 3, o): of the products' weights
        T* lane_sums;     // (2 c + o, lanes): of the last parameters, from the norm's on
    };
    const int64_t lead;    // by how many rows the hidden map is computed before its gradient
    Weights<T> weights;    // with windows rotated by 180°
    T* rotated_depthwise;  // (c, 3, 3): the depthwise weights, rotated by 180°
    T* band_sums;          // (bands(), parameters())
    T* source_sums;        // (bands(), source_rows(), W, c): gradients of the source
    Scratch* scratch;

    Backward(const Problem& problem, Arena& arena) : Base(problem), lead(reach > 1 ? reach : 1) {
        weights = this->take_weights(arena, p.outputs, channels);
        rotated_depthwise = arena.take<T>(channels * 9);
        band_sums = arena.take<T>(this->bands() * parameters());
        source_sums = arena.take<T>(this->bands() * source_sums_size());
        scratch = arena.take<Scratch>(p.threads);
        for (int64_t thread = 0; thread < p.threads; ++thread) {
            Scratch s;
            s.query = this->take_ring(arena, lead + kStepRows + 2, channels);
            s.hidden = this->take_ring(arena, reach + lead + kStepRows, channels);
            s.normalized = this->take_ring(arena, lead + kStepRows, channels + 1);
            s.grad_predicted = this->take_ring(arena, p.kernel_size + kStepRows - 1, p.outputs);
            s.grad_depthwise = this->take_ring(arena, kStepRows + 2, channels);
            s.strip = arena.take<T>(channels * kStrip);
            s.grad_hidden = arena.take<T>(kProducts * channels * padded_width);
            s.grad_query_row = arena.take<T>(p.source_width ? p.width * channels : 0);
            s.grad_blended = arena.take<T>(p.source_width * channels);
            s.hidden_winograd = this->take_winograd_scratch(arena, channels);
            s.grad_winograd = this->take_winograd_scratch(arena, p.outputs);
            s.product_sums = arena.take<T>(product_sums_size());
            s.lane_sums = arena.take<T>(num_lane_sums() * lanes);
            if (arena.base) scratch[thread] = s;
        }
    }

    // The parameters in the order in which their gradients are summed up: convolution (c, k_e, k_e,
    // o), depthwise (c, 3, 3), norm's weight and bias (c) each, the convolution's bias (o).
    int64_t conv_size() const { return channels * p.kernel_size * p.kernel_size * p.outputs; }
    int64_t norm_at() const { return conv_size() + channels * 9; }
    int64_t bias_at() const { return norm_at() + channels * 2; }
    int64_t parameters() const { return bias_at() + p.outputs; }
    int64_t product_sums_size() const { return this->products() * channels * 3 * p.outputs; }
    int64_t num_lane_sums() const { return parameters() - norm_at(); }
    int64_t source_rows() const { return this->row_axis.source_pixels(kBandRows); }
    int64_t source_sums_size() const { return source_rows() * p.source_width * channels; }

    template <typename S>
    void compute() const {
        pack_weights();
#pragma omp parallel num_threads(static_cast<int>(p.threads))
        {
            Scratch s = scratch[omp_get_thread_num()];
            s.query.clear();
            s.hidden.clear();
            s.normalized.clear();
            s.grad_predicted.clear();
            s.grad_depthwise.clear();
#pragma omp for schedule(dynamic)
            for (int64_t index = 0; index < this->bands(); ++index) {
                s.sums = band_sums + index * parameters();
                for (int64_t i = 0; i < norm_at(); ++i) s.sums[i] = 0;
                for (int64_t i = 0; i < product_sums_size(); ++i) s.product_sums[i] = 0;
                for (int64_t i = 0; i < num_lane_sums() * lanes; ++i) s.lane_sums[i] = 0;
                run_band<S>(this->band_at(index), s);
                if (this->products())
                    add_weight_grads(s.product_sums, channels, 3 * p.outputs, s.sums);
                for (int64_t i = 0; i < num_lane_sums(); ++i) {
                    using V = Vector<T, kVectorBytes>;
                    s.sums[norm_at() + i] =
                        sum_of_lanes<T, kVectorBytes>(V::load(s.lane_sums + i * lanes));
                }
            }
        }
        sum_bands();
        if (p.grad_resized) sum_source<S>();
    }

    void pack_weights() const {
        const int64_t window = p.kernel_size * p.kernel_size;
        for (int64_t o = 0; o < p.outputs; ++o)
            for (int64_t c = 0; c < channels; ++c)
                for (int64_t i = 0; i < window; ++i)
                    weights.direct[(o * window + window - 1 - i) * channels + c] =
                        this->conv_weight[(o * channels + c) * window + i];
        if (this->products())
            transform_weights(weights.direct, p.outputs, 3 * channels, weights.transformed);
        for (int64_t c = 0; c < channels; ++c)
            for (int64_t i = 0; i < 9; ++i)
                rotated_depthwise[c * 9 + 8 - i] = this->depthwise[c * 9 + i];
    }

    // The gradient of the depthwise convolution's result is needed one row beyond the band on
    // either side: the rows inside it pass it on to the query through a 3 x 3 window.
    template <typename S>
    void run_band(const Band& band, const Scratch& s) const {
        T* const sums = source_sums + band.index * source_sums_size();
        for (int64_t i = 0; i < source_sums_size(); ++i) sums[i] = 0;
        for (int64_t y = band.first - lead - 1; y <= band.end + lead + 1; ++y) {
            this->template load_query<S>(band, y, s.query);
            if (y > band.first - lead)
                this->compute_hidden(y - 1, s.query, s.strip, s.hidden, &s.normalized);
            const int64_t at = y - 1 - lead;
            if (at + reach >= band.first - 1 - reach) load_grad(band, at + reach, s.grad_predicted);
            if (at < band.first - 1) continue;
            if (band.has(at))
                if (const int64_t rows = this->rows_of_step(at, band.first, band.end))
                    add_convolution_sums(at + 1 - rows, rows, s);
            if (const int64_t rows = this->rows_of_step(at, band.first - 1, band.end + 1))
                backward_rows<S>(band, at + 1 - rows, rows, s);
        }
    }

    void load_grad(const Band& band, int64_t y, const Ring<T>& grads) const {
        if (this->is_outside(y)) return grads.clear(y);
        const T range = static_cast<T>(p.offset_range), inverse = range > 0 ? 1 / range : 0;
        int64_t at = ((band.n * p.groups + band.group) * p.outputs * p.height + y) * p.width;
        for (int64_t o = 0; o < p.outputs; ++o, at += p.height * p.width) {
            const T* const offsets = static_cast<const T*>(p.offsets) + at;
            const T* const grad_offsets = static_cast<const T*>(p.grad_offsets) + at;
            T* const out = grads.row(y) + o * grads.stride;
#pragma omp simd
            for (int64_t x = 0; x < p.width; ++x)
                out[x] = grad_offsets[x] * (range - offsets[x] * offsets[x] * inverse);
        }
    }

    void add_convolution_sums(int64_t first, int64_t count, const Scratch& s) const {
        for (int64_t i = 0; i < count; ++i)
            for (int64_t o = 0; o < p.outputs; ++o)
                add_lanes(s.grad_predicted.row(first + i) + o * s.grad_predicted.stride,
                          padded_width, s.lane_sums + (2 * channels + o) * lanes);
        if (this->is_winograd_step(count)) return add_product_sums(first, s);
        const T** const rows = s.hidden_winograd.addresses;
        for (int64_t i = 0; i < count; ++i) {
            this->find_addresses(s.hidden, first + i, rows);
            correlate<T, kCorrelatedOutputs>(rows, channels * p.kernel_size, p.kernel_size,
                                             s.grad_predicted.row(first + i),
                                             s.grad_predicted.stride, p.outputs, p.width, s.sums);
        }
    }

    void add_product_sums(int64_t first, const Scratch& s) const {
        const Ring<T>&hidden = s.hidden_winograd.rows, &grads = s.grad_winograd.rows;
        this->transform_step(s.hidden, first, hidden);
        const T* sources[kStepRows];
        T* targets[kProducts];
        for (int64_t i = 0; i < kStepRows; ++i) sources[i] = s.grad_predicted.whole_row(first + i);
        for (int64_t i = 0; i < kProducts; ++i) targets[i] = grads.whole_row(i);
        transform_grads(sources, grads.row_size(), targets);

        T* sums = s.product_sums;
        for (int64_t i = 0; i < kProducts; ++i, sums += channels * 3 * p.outputs) {
            this->find_product_addresses(s.hidden_winograd, i);
            correlate<T, kCorrelatedOutputs>(s.hidden_winograd.addresses, channels, 3, grads.row(i),
                                             grads.stride, p.outputs, p.width, sums);
        }
    }

    static void add_lanes(const T* values, int64_t count, T* sums) {
        for (int64_t i = 0; i < count; i += lanes)
#pragma omp simd
            for (int64_t lane = 0; lane < lanes; ++lane) sums[lane] += values[i + lane];
    }

    // From the gradients of a step's rows of the prediction to those of the query.
    template <typename S>
    void backward_rows(const Band& band, int64_t first, int64_t count, const Scratch& s) const {
        this->template convolve_rows<kBackwardOutputs>(s.grad_predicted, first, count, weights,
                                                       channels, s.grad_winograd, s.grad_hidden);
        for (int64_t i = 0; i < count; ++i)
            backward_row(first + i, band.has(first + i),
                         s.grad_hidden + i * channels * padded_width, s);
        for (int64_t y = first; y < first + count; ++y) {
            if (y <= band.first) continue;
            compute_grad_query(y - 1, s);
            if (p.grad_resized)
                add_grad_source<S>(band, y - 1, s);
            else
                store_grad_query<S>(band, y - 1, s);
        }
    }

    // From the gradient of a row of the hidden map to that of the depthwise convolution's result.
    void backward_row(int64_t y, bool is_own, T* grad_hidden_row, const Scratch& s) const {
        if (this->is_outside(y)) return s.grad_depthwise.clear(y);
        for (int64_t c = 0; c < channels; ++c)
            for (int64_t x = p.width; x < padded_width; ++x)
                grad_hidden_row[c * padded_width + x] = 0;

        const int64_t stride = s.grad_depthwise.stride;
        const T* const normalized_row = s.normalized.row(y);
        T* const out_row = s.grad_depthwise.row(y);
        const T inverse = 1 / static_cast<T>(channels);
        for (int64_t x = 0; x < padded_width; x += kStrip) {
            const T* const normalized = normalized_row + x;
            const T* const deviation = normalized + channels * s.normalized.stride;
            T* const out = out_row + x;
            T mean[kStrip] = {}, moment[kStrip] = {};
            for (int64_t c = 0; c < channels; ++c) {
                const T weight = this->norm_weight[c], bias = this->norm_bias[c];
                const T* const z = normalized + c * s.normalized.stride;
                const T* const grad_hidden = grad_hidden_row + c * padded_width + x;
                T grad_bias[kStrip], grad_weight[kStrip];
#pragma omp simd
                for (int64_t i = 0; i < kStrip; ++i) {
                    grad_bias[i] = grad_hidden[i] * gelu_slope(z[i] * weight + bias);
                    grad_weight[i] = grad_bias[i] * z[i];
                    mean[i] += weight * grad_bias[i];
                    moment[i] += weight * grad_weight[i];
                    out[c * stride + i] = weight * grad_bias[i];
                }
                if (is_own) {
                    add_lanes(grad_weight, kStrip, s.lane_sums + c * lanes);
                    add_lanes(grad_bias, kStrip, s.lane_sums + (channels + c) * lanes);
                }
            }
            for (int64_t i = 0; i < kStrip; ++i) {
                mean[i] *= inverse;
                moment[i] *= inverse;
            }
            for (int64_t c = 0; c < channels; ++c) {
                const T* const z = normalized + c * s.normalized.stride;
                T* const grad = out + c * stride;
#pragma omp simd
                for (int64_t i = 0; i < kStrip; ++i)
                    grad[i] = deviation[i] * (grad[i] - mean[i] - z[i] * moment[i]);
            }
        }
        this->clear_tails(s.grad_depthwise, y);
        if (!is_own) return;
        for (int64_t c = 0; c < channels; ++c) {
            const int64_t at = c * s.query.stride - 1;
            const T* const rows[3] = {s.query.row(y - 1) + at, s.query.row(y) + at,
                                      s.query.row(y + 1) + at};
            correlate<T, 1>(rows, 3, 3, out_row + c * stride, stride, 1, p.width,
                            s.sums + conv_size() + c * 9);
        }
    }

    // A row of the query's gradient, (c, padded_width), over `grad_hidden`, which is not read any
    // more.
    void compute_grad_query(int64_t y, const Scratch& s) const {
        const Ring<T>& grads = s.grad_depthwise;
        const T* const rows[3] = {grads.row(y - 1), grads.row(y), grads.row(y + 1)};
        for (int64_t c = 0; c < channels; ++c)
            for (int64_t x = 0; x < padded_width; x += kStrip)
                this->convolve_depthwise(rows, c * grads.stride + x, rotated_depthwise + c * 9,
                                         s.grad_hidden + c * padded_width + x);
    }

    template <typename S>
    void store_grad_query(const Band& band, int64_t y, const Scratch& s) const {
        const int64_t* stride = p.grad_query_strides;
        S* map = static_cast<S*>(p.grad_query) + band.n * stride[0] +
                 band.group * channels * stride[1] + y * stride[2];
        // As in `load_query`, channels and pixels are exchanged.
        if constexpr (std::is_same_v<S, T>)
            if (stride[1] == 1) return to_pixels(s.grad_hidden, map, stride[3]);
        store_pixels(s.grad_hidden, padded_width, channels, p.width, map, stride[3], stride[1]);
    }

    // From (c, padded_width) to (X, c).
    void to_pixels(const T* planes, T* pixels, int64_t stride) const {
        for (int64_t x = 0; x < p.width; x += kStrip)
            transpose(planes + x, padded_width, channels, min(kStrip, p.width - x),
                      pixels + x * stride, stride);
    }

    template <typename S>
    void add_grad_source(const Band& band, int64_t y, const Scratch& s) const {
        to_pixels(s.grad_hidden, s.grad_query_row, channels);
        const S* known = static_cast<const S*>(p.grad_resized) +
                         (band.n * p.height + y) * p.width * p.depth + band.group * channels;
        const int64_t size = p.source_width * channels;
        for (int64_t i = 0; i < size; ++i) s.grad_blended[i] = 0;
        for (int64_t x = 0; x < p.width; ++x, known += p.depth) {
            T* const grad = s.grad_query_row + x * channels;
#pragma omp simd
            for (int64_t c = 0; c < channels; ++c) grad[c] += widen<S, T>(known[c]);
            const Between<T> along = this->column_axis.template at<T>(x);
            interpolate_backward(grad, along.weight, channels,
                                 s.grad_blended + along.lower * channels,
                                 s.grad_blended + along.upper * channels);
        }
        T* const sums = source_sums + band.index * source_sums_size();
        const Between<T> across = this->row_axis.template at<T>(y);
        const int64_t first = this->row_axis.lower(band.first);
        interpolate_backward(s.grad_blended, across.weight, size,
                             sums + (across.lower - first) * size,
                             sums + (across.upper - first) * size);
    }

    // Sums up the bands' gradients of the source: neighbouring bands share rows of it.
    template <typename S>
    void sum_source() const {
        const int64_t size = p.source_width * channels, maps = p.batch * p.groups;
#pragma omp parallel for num_threads(static_cast<int>(p.threads)) schedule(static)
        for (int64_t row = 0; row < maps * p.source_height; ++row) {
            const int64_t map = row / p.source_height, y = row % p.source_height;
            T* const total = scratch[omp_get_thread_num()].grad_blended;
            for (int64_t i = 0; i < size; ++i) total[i] = 0;
            for (int64_t index = 0; index < this->bands_per_map(); ++index) {
                const Band band = this->band_at(map * this->bands_per_map() + index);
                const int64_t at = y - this->row_axis.lower(band.first);
                if (at < 0 || y > this->row_axis.upper(band.end - 1)) continue;
                const T* const sums = source_sums + band.index * source_sums_size() + at * size;
                for (int64_t i = 0; i < size; ++i) total[i] += sums[i];
            }
            S* out = static_cast<S*>(p.grad_query) +
                     (map / p.groups * p.source_height + y) * p.source_width * p.depth +
                     map % p.groups * channels;
            for (int64_t x = 0; x < p.source_width; ++x, out += p.depth)
                for (int64_t c = 0; c < channels; ++c)
                    out[c] = narrow<S, T>(total[x * channels + c]);
        }
    }

    void sum_bands() const {
        T* const total = band_sums;
        for (int64_t band = 1; band < this->bands(); ++band)
            for (int64_t i = 0; i < parameters(); ++i)
                total[i] += band_sums[band * parameters() + i];

        const int64_t inputs = channels * p.kernel_size * p.kernel_size;
        T* const grad_weight = static_cast<T*>(p.grad_conv_weight);
        for (int64_t o = 0; o < p.outputs; ++o)
            for (int64_t i = 0; i < inputs; ++i)
                grad_weight[o * inputs + i] = total[i * p.outputs + o];
        copy(total + conv_size(), channels * 9, p.grad_depthwise);
        copy(total + norm_at(), channels, p.grad_norm_weight);
        copy(total + norm_at() + channels, channels, p.grad_norm_bias);
        copy(total + bias_at(), p.outputs, p.grad_conv_bias);
    }

    static void copy(const T* source, int64_t count, void* target) {
        for (int64_t i = 0; i < count; ++i) static_cast<T*>(target)[i] = source[i];
    }
};

}  // namespace
}  // namespace offset_network::LDA_AQU_ISA
