// The gradients.
#pragma once
#include "attention.h"

namespace LDA_AQU_ISA {
namespace {

constexpr int64_t kChunk = 128;  // channels that one unit of the scatter handles at most

// What a thread works with beyond Scratch.
template <typename T>
struct BackwardScratch {
    T* value_dots;    // (segments, 4, k², kStrip): grad . value at the taps
    T* grad_offsets;  // (2, k², kStrip)
};

template <typename T>
struct BackwardKernel : Kernel<T> {
    using Base = Kernel<T>;
    using Base::corner;
    using Base::num_points;
    using Base::p;

    // What one thread scatters: some channels of the value, or of the key.
    struct Unit {
        Segment segment;
        bool is_value;
    };

    T *attention, *grad_logits;  // (strips, heads, k², kStrip)
    T* bias_sums;                // (blocks, heads, k², d / heads)
    T* chunk_sums;               // (threads, H * W + 1, chunk); the last row takes what is outside
    int64_t chunk;               // channels of a unit of the scatter, at most
    Unit* units;                 // of each image
    int64_t num_units = 0;
    BackwardScratch<T>* backward_scratch;

    BackwardKernel(const Problem& problem, Arena& arena) : Base(problem, arena) {
        attention = arena.take<T>(this->strips() * p.heads * corner);
        grad_logits = arena.take<T>(this->strips() * p.heads * corner);
        bias_sums = arena.take<T>(this->bias ? this->blocks() * num_points * p.depth : 0);
        chunk = kChunk;
        while (chunk > 16 && p.batch * (p.channels + p.depth) / chunk < 2 * p.threads) chunk /= 2;
        units = arena.take<Unit>(p.channels + p.depth);
        if (arena.base) {
            add_units(p.channels, true);
            add_units(p.depth, false);
        }
        chunk_sums = arena.take<T>(p.threads * chunk_sums_size());
        backward_scratch = arena.take<BackwardScratch<T>>(p.threads);
        for (int64_t thread = 0; thread < p.threads; ++thread) {
            BackwardScratch<T> s;
            s.value_dots = arena.take<T>(this->segments() * 4 * corner);
            s.grad_offsets = arena.take<T>(2 * corner);
            if (arena.base) backward_scratch[thread] = s;
        }
    }

    void add_units(int64_t channels, bool is_value) {
        for (int64_t at = 0; at < channels; at = units[num_units++].segment.end) {
            Segment segment = segment_at(at, channels, p);
            segment.end = min(segment.end, at + chunk);
            units[num_units] = {segment, is_value};
        }
    }

    int64_t chunk_sums_size() const { return round_up((this->in_pixels() + 1) * chunk, 16); }

    template <typename S>
    void backward() const {
#pragma omp parallel for num_threads(static_cast<int>(p.threads)) schedule(dynamic)
        for (int64_t index = 0; index < this->blocks(); ++index) {
            const int thread = omp_get_thread_num();
            const Scratch<T>& scratch = this->scratch[thread];
            T* bias_sum = bias_sums + index * num_points * p.depth;
            if (this->bias)
                for (int64_t i = 0; i < num_points * p.depth; ++i) bias_sum[i] = 0;
            const Block block = this->block_at(index);
            for (int64_t row = 0; row < block.height; ++row) {
                load_grad_output<S>(block, row, 0, p.channels, scratch.tile);
                for (int64_t column = 0; column < block.strips(); ++column) {
                    prefetch_grad_output<S>(block, row + 1, column, 0, p.channels);
                    gather(block.strip(row, column), scratch,
                           scratch.tile + column * kStrip * this->tile_stride(),
                           backward_scratch[thread], bias_sum);
                }
            }
        }
        if (this->bias) sum_bias();

#pragma omp parallel for num_threads(static_cast<int>(p.threads)) schedule(dynamic)
        for (int64_t index = 0; index < p.batch * num_units; ++index)
            scatter_unit<S>(index / num_units, units[index % num_units]);
    }

    // Channels [first, first + count) of the output's gradient at a row of a block.
    template <typename S>
    void load_grad_output(const Block& block, int64_t row, int64_t first, int64_t count,
                          T* tile) const {
        const int64_t* stride = p.output_strides;
        const S* grad = static_cast<const S*>(p.grad_output) + block.n * stride[0] +
                        first * stride[1] + (block.y + row) * stride[2] + block.x * stride[3];
        load_pixels(grad, stride[1], stride[3], block.width, count, tile, this->tile_stride());
    }

    // Begins to read what load_grad_output will: a share of the channels for each strip of the row
    // before it.
    template <typename S>
    void prefetch_grad_output(const Block& block, int64_t row, int64_t column, int64_t first,
                              int64_t count) const {
        const int64_t* stride = p.output_strides;
        if (row == block.height || stride[1] == 1) return;
        const int64_t share = ceil_div(count, block.strips()), begin = min(column * share, count);
        const S* grad = static_cast<const S*>(p.grad_output) + block.n * stride[0] +
                        (first + begin) * stride[1] + (block.y + row) * stride[2] +
                        block.x * stride[3];
        prefetch(grad, stride[1], min(share, count - begin), block.width);
    }

    // The gradients that pixels gather: of their queries, their offsets, their share of the bias'.
    void gather(const Strip& s, const Scratch<T>& scratch, const T* grad,
                const BackwardScratch<T>& b, T* bias_sum) const {
        const int64_t kept = this->strip_index(s) * p.heads * corner;
        T *const a = attention + kept, *const g = grad_logits + kept;
        this->attend(s, scratch, a);
        for (int64_t i = 0; i < p.heads * corner; ++i) g[i] = 0;
        this->add_point_dots(s, grad, this->tile_stride(), this->value, scratch, b.value_dots, g);
        softmax_backward(a, g);
        for (int64_t group = 0; group < p.groups; ++group)
            store_grad_offsets(s, group, a, g, scratch, b);
        const T* const q = this->query + this->output_pixel(s) * p.depth;
        store_grad_query(s, q, g, scratch);
        if (this->bias) add_bias_sum(s, q, g, bias_sum);
    }

    // From the gradient g of the attention a to that of the logits, before they are scaled.
    void softmax_backward(const T* a, T* g) const {
        for (int64_t head = 0; head < p.heads; ++head, a += corner, g += corner) {
            T mean[kStrip] = {};
            for (int64_t at = 0; at < corner; at += kStrip)
#pragma omp simd
                for (int64_t i = 0; i < kStrip; ++i) mean[i] += a[at + i] * g[at + i];
            for (int64_t at = 0; at < corner; at += kStrip)
#pragma omp simd
                for (int64_t i = 0; i < kStrip; ++i)
                    g[at + i] = a[at + i] * (g[at + i] - mean[i]) * this->scale;
        }
    }

    void store_grad_offsets(const Strip& s, int64_t group, const T* a, const T* g,
                            const Scratch<T>& scratch, const BackwardScratch<T>& b) const {
        for (int64_t i = 0; i < 2 * corner; ++i) b.grad_offsets[i] = 0;
        add_grad_offsets(group, p.depth, scratch.key_dots, g, scratch.taps[group], b);
        add_grad_offsets(group, p.channels, b.value_dots, a, scratch.taps[group], b);
        const int64_t* stride = p.grad_offset_strides;
        T* grad = static_cast<T*>(p.grad_offsets) + s.n * stride[0] + group * stride[1] +
                  s.y * stride[4] + s.x * stride[5];
        for (int64_t n = 0; n < num_points; ++n)
            for (int64_t axis = 0; axis < 2; ++axis) {
                const T* const strip = b.grad_offsets + axis * corner + n * kStrip;
                T* const row = grad + n * stride[2] + axis * stride[3];
                for (int64_t i = 0; i < s.width; ++i) row[i * stride[5]] = strip[i];
            }
    }

    // The derivative of a bilinear read by its position, times what the read was weighted with.
    void add_grad_offsets(int64_t group, int64_t channels, const T* dots, const T* factors,
                          const Taps<T>& taps, const BackwardScratch<T>& b) const {
        for (int64_t at = 0; at < channels; dots += 4 * corner) {
            const Segment segment = segment_at(at, channels, p);
            at = segment.end;
            if (segment.group != group) continue;
            const T* const factor = factors + segment.head * corner;
#pragma omp simd
            for (int64_t i = 0; i < corner; ++i) {
                const T wy = taps.y[i], wx = taps.x[i];
                const T e0 = dots[i], e1 = dots[corner + i];
                const T e2 = dots[2 * corner + i], e3 = dots[3 * corner + i];
                b.grad_offsets[i] +=
                    factor[i] * this->scale_y * ((1 - wx) * (e2 - e0) + wx * (e3 - e1));
                b.grad_offsets[corner + i] +=
                    factor[i] * this->scale_x * ((1 - wy) * (e1 - e0) + wy * (e3 - e2));
            }
        }
    }

    void store_grad_query(const Strip& s, const T* q, const T* g, const Scratch<T>& scratch) const {
        T* grad_query = static_cast<T*>(p.grad_query) + (q - this->query);
        for (int64_t at = 0; at < p.depth;) {
            const Segment segment = segment_at(at, p.depth, p);
            const Taps<T>& taps = scratch.taps[segment.group];
            const T* const factor = g + segment.head * corner;
            const Rows<const T> rows = this->rows_of(this->key, s.n, segment);
            this->weigh_taps(taps, factor, scratch.tap_weights);
            for (int64_t i = 0; i < s.width; ++i)
                weighted_sum<T, false>(scratch.tap_weights + i, rows, taps.pixel + i,
                                       4 * num_points, segment.length(),
                                       grad_query + i * p.depth + at);
            if (this->bias) {
                const Rows<const T> bias = this->bias_rows(at);
                for (int64_t i = 0; i < s.width; ++i)
                    weighted_sum<T, true>(factor + i, bias, this->bias_pixels + i, num_points,
                                          segment.length(), grad_query + i * p.depth + at);
            }
            at = segment.end;
        }
    }

    // bias_sum (heads, k², d / heads) += the gradients of the logits x the queries of the strip.
    void add_bias_sum(const Strip& s, const T* q, const T* g, T* bias_sum) const {
        const int64_t width = p.depth / p.heads;
        for (int64_t head = 0; head < p.heads; ++head)
            for (int64_t n = 0; n < num_points; ++n) {
                const T* const factor = g + head * corner + n * kStrip;
                T* const sums = bias_sum + (head * num_points + n) * width;
                for (int64_t i = 0; i < s.width; ++i) {
                    const T* const row = q + i * p.depth + head * width;
                    for (int64_t c = 0; c < width; ++c) sums[c] += factor[i] * row[c];
                }
            }
    }

    void sum_bias() const {
        T* grad_bias = static_cast<T*>(p.grad_bias);
        const int64_t size = num_points * p.depth;
        for (int64_t i = 0; i < size; ++i) grad_bias[i] = 0;
        for (int64_t block = 0; block < this->blocks(); ++block)
            for (int64_t i = 0; i < size; ++i) grad_bias[i] += bias_sums[block * size + i];
    }

    // All that the pixels of image n pass on to these channels of the value, or of the key.
    template <typename S>
    void scatter_unit(int64_t n, const Unit& unit) const {
        const auto& [segment, is_value] = unit;
        const int64_t length = segment.length();
        const Scratch<T>& scratch = this->scratch[omp_get_thread_num()];
        const Taps<T>& taps = scratch.taps[segment.group];
        T* const sums = chunk_sums + omp_get_thread_num() * chunk_sums_size();
        for (int64_t i = 0; i < (this->in_pixels() + 1) * length; ++i) sums[i] = 0;
        const Rows<T> rows{sums, length, sums + this->in_pixels() * length};

        const T* factors = (is_value ? attention : grad_logits) + segment.head * corner;
        for (int64_t index = 0; index < this->blocks_per_image(); ++index) {
            const Block block = this->block_at(n * this->blocks_per_image() + index);
            for (int64_t row = 0; row < block.height; ++row) {
                if (is_value)
                    load_grad_output<S>(block, row, segment.begin, length, scratch.tile);
                for (int64_t column = 0; column < block.strips(); ++column) {
                    const Strip s = block.strip(row, column);
                    if (is_value)
                        prefetch_grad_output<S>(block, row + 1, column, segment.begin, length);
                    this->place_taps(s, segment.group, taps);
                    this->weigh_taps(taps, factors + this->strip_index(s) * p.heads * corner,
                                     scratch.tap_weights);
                    const int64_t stride = is_value ? this->tile_stride() : p.depth;
                    const T* source =
                        is_value ? scratch.tile + column * kStrip * stride
                                 : this->query + this->output_pixel(s) * stride + segment.begin;
                    for (int64_t i = 0; i < s.width; ++i)
                        scatter<T>(scratch.tap_weights + i, rows, taps.pixel + i, 4 * num_points,
                                   length, source + i * stride);
                }
            }
        }

        if (is_value) {
            const int64_t* stride = p.grad_value_strides;
            store_sums(sums, segment, static_cast<T*>(p.grad_value) + n * stride[0], stride[1],
                       stride[2], stride[3]);
        } else {
            store_sums(sums, segment,
                       static_cast<T*>(p.grad_key) + n * this->in_pixels() * p.depth, 1,
                       p.in_width * p.depth, p.depth);
        }
    }

    void store_sums(const T* sums, const Segment& segment, T* grad, int64_t channel_stride,
                    int64_t row_stride, int64_t column_stride) const {
        const int64_t length = segment.length();
        for (int64_t y = 0; y < p.in_height; ++y)
            store_pixels(sums + y * p.in_width * length, length, p.in_width, length,
                         grad + segment.begin * channel_stride + y * row_stride, channel_stride,
                         column_stride);
    }
};

}  // namespace
}  // namespace LDA_AQU_ISA
