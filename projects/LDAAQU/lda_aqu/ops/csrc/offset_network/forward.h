// The forward pass of the offset network: resizes the query, if asked for, and predicts the
// offsets.
#pragma once
#include "kernel.h"

namespace offset_network::LDA_AQU_ISA {
namespace {

template <typename T>
struct Forward : Kernel<T> {
    using Base = Kernel<T>;
    using Base::channels;
    using Base::p;
    using Base::padded_width;
    using Base::reach;

    struct Scratch {
        Ring<T> query, hidden;
        T* blended;    // (W, c): two rows of the source, interpolated
        T* resized;    // (X, c): a row of the query that belongs to another band
        T* strip;      // (c, kStrip)
        T* predicted;  // (kProducts, o, padded_width)
        WinogradScratch<T> winograd;
    };
    Weights<T> weights;
    Scratch* scratch;

    Forward(const Problem& problem, Arena& arena) : Base(problem) {
        weights = this->take_weights(arena, channels, p.outputs);
        scratch = arena.take<Scratch>(p.threads);
        for (int64_t thread = 0; thread < p.threads; ++thread) {
            Scratch s;
            s.query = this->take_ring(arena, 3, channels);
            s.hidden = this->take_ring(arena, p.kernel_size + kStepRows - 1, channels);
            s.blended = arena.take<T>(p.source_width * channels);
            s.resized = arena.take<T>(p.source_width ? p.width * channels : 0);
            s.strip = arena.take<T>(channels * kStrip);
            s.predicted = arena.take<T>(kProducts * p.outputs * padded_width);
            s.winograd = this->take_winograd_scratch(arena, channels);
            if (arena.base) scratch[thread] = s;
        }
    }

    template <typename S>
    void compute() const {
        const int64_t inputs = channels * p.kernel_size * p.kernel_size;
        for (int64_t o = 0; o < p.outputs; ++o)
            for (int64_t i = 0; i < inputs; ++i)
                weights.direct[i * p.outputs + o] = this->conv_weight[o * inputs + i];
        if (this->products())
            transform_weights(weights.direct, channels, 3 * p.outputs, weights.transformed);
#pragma omp parallel num_threads(static_cast<int>(p.threads))
        {
            const Scratch& s = scratch[omp_get_thread_num()];
            s.query.clear();
            s.hidden.clear();
#pragma omp for schedule(dynamic)
            for (int64_t index = 0; index < this->bands(); ++index) {
                const Band band = this->band_at(index);
                for (int64_t y = band.first - reach - 1; y <= band.end + reach; ++y) {
                    if (p.source && !this->is_outside(y))
                        resize_query<S>(band, y, s);
                    else
                        this->template load_query<S>(band, y, s.query);
                    if (y > band.first - reach)
                        this->compute_hidden(y - 1, s.query, s.strip, s.hidden, nullptr);
                    const int64_t at = y - 1 - reach;
                    if (at < band.first) continue;
                    if (const int64_t rows = this->rows_of_step(at, band.first, band.end))
                        predict(band, at + 1 - rows, rows, s);
                }
            }
        }
    }

    template <typename S>
    void resize_query(const Band& band, int64_t y, const Scratch& s) const {
        const int64_t row = p.source_width * p.depth;
        const S* const map = static_cast<const S*>(p.source) + band.n * p.source_height * row +
                             band.group * channels;
        const Between<T> across = this->row_axis.template at<T>(y);
        for (int64_t x = 0; x < p.source_width; ++x)
            interpolate(map + across.lower * row + x * p.depth,
                        map + across.upper * row + x * p.depth, across.weight, channels,
                        s.blended + x * channels);

        const bool is_own = band.has(y);
        S* const out =
            is_own ? this->template query_row<S>(band, y) : reinterpret_cast<S*>(s.resized);
        const int64_t stride = is_own ? p.depth : channels;
        for (int64_t x = 0; x < p.width; ++x) {
            const Between<T> along = this->column_axis.template at<T>(x);
            interpolate(s.blended + along.lower * channels, s.blended + along.upper * channels,
                        along.weight, channels, out + x * stride);
        }
        load_pixels(out, stride, 1, channels, p.width, s.query.row(y), s.query.stride);
    }

    void predict(const Band& band, int64_t y, int64_t count, const Scratch& s) const {
        this->template convolve_rows<kForwardOutputs>(s.hidden, y, count, weights, p.outputs,
                                                      s.winograd, s.predicted);
        const T range = static_cast<T>(p.offset_range);
        const T* predicted = s.predicted;
        for (int64_t i = 0; i < count; ++i)
            for (int64_t o = 0; o < p.outputs; ++o, predicted += padded_width) {
                const int64_t map = (band.n * p.groups + band.group) * p.outputs + o;
                T* const out = static_cast<T*>(p.offsets) + (map * p.height + y + i) * p.width;
                const T bias = this->conv_bias[o];
#pragma omp simd
                for (int64_t x = 0; x < p.width; ++x) out[x] = range * tanh_of(predicted[x] + bias);
            }
    }
};

}  // namespace
}  // namespace offset_network::LDA_AQU_ISA
