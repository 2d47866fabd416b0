// The gradients.
#pragma once
#include "attention.h"
#include "layout.h"

namespace LDA_AQU_ISA {
namespace {

constexpr int64_t kChunk = 128;  // channels that one unit of the scatter handles at most

// What a thread works with beyond Scratch.
template <typename T>
struct BackwardScratch {
    T* grad_logits;  // (heads, points)
    T* value_dots;   // (segments, taps): grad . value at the taps
    T* tap_weights;  // (5, k²)
    T** targets;     // (4, k²): where gradients are added
    T* tile;         // (kBlock, C + kPad): gradients of the output pixels of a row
};

template <typename T>
struct BackwardKernel : Kernel<T> {
    using Base = Kernel<T>;
    using Base::p;
    using Base::num_points;
    using Base::points;
    using Base::taps;

    T *attention, *grad_logits;  // (N, Y, X, heads, k²)
    T* bias_sums;                // (blocks, heads, k², d / heads)
    T* chunk_sums;               // (threads, H * W + 1, kChunk); the last row takes what is outside
    int64_t chunk;               // channels of a unit of the scatter
    BackwardScratch<T>* backward_scratch;

    BackwardKernel(const Problem& problem, Arena& arena) : Base(problem, arena) {
        const int64_t pixels = p.batch * p.out_height * p.out_width;
        attention = arena.take<T>(pixels * p.heads * num_points);
        grad_logits = arena.take<T>(pixels * p.heads * num_points);
        bias_sums = arena.take<T>(this->bias ? this->blocks() * num_points * p.depth : 0);
        chunk = kChunk;
        while (chunk > 16 && p.batch * (p.channels + p.depth) / chunk < 2 * p.threads) chunk /= 2;
        chunk_sums = arena.take<T>(p.threads * chunk_sums_size());
        backward_scratch = arena.take<BackwardScratch<T>>(p.threads);
        for (int64_t thread = 0; thread < p.threads; ++thread) {
            BackwardScratch<T> s;
            s.grad_logits = arena.take<T>(p.heads * points);
            s.value_dots = arena.take<T>(this->segments() * taps);
            s.tap_weights = arena.take<T>(5 * points);
            s.targets = arena.take<T*>(4 * points);
            s.tile = arena.take<T>(this->tile_size());
            if (arena.base) backward_scratch[thread] = s;
        }
    }

    int64_t chunk_sums_size() const {
        return round_up((p.in_height * p.in_width + 1) * chunk, 16);
    }

    // Calls visit(segment) for each piece of at most `chunk` channels.
    template <typename F>
    void for_chunks(int64_t channels, F visit) const {
        for (int64_t at = 0; at < channels;) {
            Segment segment = segment_at(at, channels, p);
            segment.end = min(segment.end, at + chunk);
            visit(segment);
            at = segment.end;
        }
    }

    template <typename S>
    void backward() const {
#pragma omp parallel for num_threads(static_cast<int>(p.threads)) schedule(dynamic)
        for (int64_t index = 0; index < this->blocks(); ++index) {
            const int thread = omp_get_thread_num();
            const BackwardScratch<T>& b = backward_scratch[thread];
            T* bias_sum = bias_sums + index * num_points * p.depth;
            if (this->bias)
                for (int64_t i = 0; i < num_points * p.depth; ++i) bias_sum[i] = 0;
            const Block block = this->block_at(index);
            for (int64_t y = block.y; y < block.y + block.height; ++y) {
                load_grad_output<S>(block, y, 0, p.channels, b.tile);
                for (int64_t i = 0; i < block.width; ++i)
                    gather_pixel(block.n, y, block.x + i, this->scratch[thread], b,
                                 b.tile + i * this->tile_stride(), bias_sum);
            }
        }
        if (this->bias) sum_bias();

        int64_t value_chunks = 0, key_chunks = 0;
        for_chunks(p.channels, [&](const Segment&) { ++value_chunks; });
        for_chunks(p.depth, [&](const Segment&) { ++key_chunks; });
        const int64_t value_units = p.batch * value_chunks;
#pragma omp parallel for num_threads(static_cast<int>(p.threads)) schedule(dynamic)
        for (int64_t unit = 0; unit < value_units + p.batch * key_chunks; ++unit) {
            const bool is_value = unit < value_units;
            const int64_t chunks = is_value ? value_chunks : key_chunks;
            const int64_t rank = is_value ? unit : unit - value_units;
            int64_t countdown = rank % chunks;
            for_chunks(is_value ? p.channels : p.depth, [&](const Segment& segment) {
                if (countdown-- == 0) scatter_chunk<S>(rank / chunks, segment, is_value);
            });
        }
    }

    // Channels [first, first + count) of the output's gradient at a row of a block.
    template <typename S>
    void load_grad_output(const Block& block, int64_t y, int64_t first, int64_t count,
                          T* tile) const {
        const int64_t* stride = p.output_strides;
        const S* grad = static_cast<const S*>(p.grad_output) + block.n * stride[0] +
                        first * stride[1] + y * stride[2] + block.x * stride[3];
        load_pixels(grad, stride[1], stride[3], block.width, count, tile, this->tile_stride());
    }

    // The gradients that a pixel gathers: of its query, its offsets, its share of the bias'.
    void gather_pixel(int64_t n, int64_t y, int64_t x, const Scratch<T>& s,
                      const BackwardScratch<T>& b, const T* grad, T* bias_sum) const {
        this->attend(n, y, x, s);
        for (int64_t i = 0; i < p.heads * points; ++i) b.grad_logits[i] = 0;
        const T* image = this->value + n * p.in_height * p.in_width * p.channels;
        T* dots = b.value_dots;
        for (int64_t at = 0; at < p.channels; dots += taps) {
            const Segment segment = segment_at(at, p.channels, p);
            this->add_point_dots(s.taps[segment.group], grad + at, image + at, p.channels,
                                 segment.end - at, s.rows, dots,
                                 b.grad_logits + segment.head * points);
            at = segment.end;
        }
        const int64_t pixel = this->output_pixel(n, y, x);
        for (int64_t head = 0; head < p.heads; ++head) {
            const T* a = s.attention + head * points;
            T* g = b.grad_logits + head * points;
            T mean = 0;
            for (int64_t i = 0; i < num_points; ++i) mean += a[i] * g[i];
            for (int64_t i = 0; i < num_points; ++i) g[i] = a[i] * (g[i] - mean) * this->scale;
            const int64_t kept = (pixel * p.heads + head) * num_points;
            for (int64_t i = 0; i < num_points; ++i) {
                attention[kept + i] = a[i];
                grad_logits[kept + i] = g[i];
            }
        }
        store_grad_offsets(n, y, x, s, b);
        store_grad_query(n, pixel, s, b, bias_sum);
    }

    void store_grad_offsets(int64_t n, int64_t y, int64_t x, const Scratch<T>& s,
                            const BackwardScratch<T>& b) const {
        const int64_t* stride = p.grad_offset_strides;
        T* grad_offsets = static_cast<T*>(p.grad_offsets) + n * stride[0] + y * stride[4] + x * stride[5];
        for (int64_t group = 0; group < p.groups; ++group)
            for (int64_t i = 0; i < num_points; ++i) {
                T* grad = grad_offsets + group * stride[1] + i * stride[2];
                grad[0] = grad[stride[3]] = 0;
            }
        add_grad_offsets(p.depth, s.key_dots, b.grad_logits, s, grad_offsets);
        add_grad_offsets(p.channels, b.value_dots, s.attention, s, grad_offsets);
    }

    // The derivative of a bilinear read by its position, times what the read was weighted with.
    void add_grad_offsets(int64_t channels, const T* dots, const T* factors, const Scratch<T>& s,
                          T* grad_offsets) const {
        const int64_t* stride = p.grad_offset_strides;
        for (int64_t at = 0; at < channels; dots += taps) {
            const Segment segment = segment_at(at, channels, p);
            const Taps<T>& placed = s.taps[segment.group];
            const T* factor = factors + segment.head * points;
            for (int64_t i = 0; i < num_points; ++i) {
                const T wy = placed.y[i], wx = placed.x[i];
                const T e[4] = {dots[i], dots[num_points + i], dots[2 * num_points + i],
                                dots[3 * num_points + i]};
                T* grad = grad_offsets + segment.group * stride[1] + i * stride[2];
                grad[0] += factor[i] * this->scale_y * ((1 - wx) * (e[2] - e[0]) + wx * (e[3] - e[1]));
                grad[stride[3]] +=
                    factor[i] * this->scale_x * ((1 - wy) * (e[1] - e[0]) + wy * (e[3] - e[2]));
            }
            at = segment.end;
        }
    }

    void store_grad_query(int64_t n, int64_t pixel, const Scratch<T>& s,
                          const BackwardScratch<T>& b, T* bias_sum) const {
        const T* q = this->query + pixel * p.depth;
        T* grad_query = static_cast<T*>(p.grad_query) + pixel * p.depth;
        const T* image = this->key + n * p.in_height * p.in_width * p.depth;
        const int64_t width = p.depth / p.heads;
        for (int64_t at = 0; at < p.depth;) {
            const Segment segment = segment_at(at, p.depth, p);
            const Taps<T>& placed = s.taps[segment.group];
            const T* factor = b.grad_logits + segment.head * points;
            this->find_rows(placed, image + at, p.depth, s.rows);
            this->weigh_taps(placed, factor, b.tap_weights);
            int64_t count = 4 * num_points;
            if (this->bias) {
                const int64_t first = segment.head * num_points * width + at - segment.head * width;
                for (int64_t i = 0; i < num_points; ++i, ++count) {
                    s.rows[count] = this->bias + first + i * width;
                    b.targets[i] = bias_sum + first + i * width;
                    b.tap_weights[count] = factor[i];
                }
                scatter<T>(factor, b.targets, num_points, segment.end - at, q + at);
            }
            weighted_sum<T>(b.tap_weights, s.rows, count, segment.end - at, grad_query + at);
            at = segment.end;
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
    void scatter_chunk(int64_t n, const Segment& segment, bool is_value) const {
        const int64_t length = segment.end - segment.begin, in_pixels = p.in_height * p.in_width;
        const int thread = omp_get_thread_num();
        const Taps<T>& placed = this->scratch[thread].taps[segment.group];
        const BackwardScratch<T>& b = backward_scratch[thread];
        T* const sums = chunk_sums + thread * chunk_sums_size();
        for (int64_t i = 0; i < (in_pixels + 1) * length; ++i) sums[i] = 0;

        const T* point_weights = is_value ? attention : grad_logits;
        for (int64_t index = 0; index < this->blocks_per_image(); ++index) {
            const Block block = this->block_at(n * this->blocks_per_image() + index);
            for (int64_t y = block.y; y < block.y + block.height; ++y) {
                if (is_value) load_grad_output<S>(block, y, segment.begin, length, b.tile);
                for (int64_t i = 0; i < block.width; ++i) {
                    const int64_t x = block.x + i, pixel = this->output_pixel(n, y, x);
                    const T* source = is_value ? b.tile + i * this->tile_stride()
                                               : this->query + pixel * p.depth + segment.begin;
                    this->place_taps(n, segment.group, y, x, placed);
                    this->weigh_taps(placed,
                                     point_weights + (pixel * p.heads + segment.head) * num_points,
                                     b.tap_weights);
                    find_targets(placed, sums, length, b.targets);
                    scatter<T>(b.tap_weights, b.targets, 4 * num_points, length, source);
                }
            }
        }

        if (is_value) {
            const int64_t* stride = p.grad_value_strides;
            store_sums(sums, segment, static_cast<T*>(p.grad_value) + n * stride[0], stride[1],
                       stride[2], stride[3]);
        } else {
            store_sums(sums, segment, static_cast<T*>(p.grad_key) + n * in_pixels * p.depth, 1,
                       p.in_width * p.depth, p.depth);
        }
    }

    void find_targets(const Taps<T>& placed, T* sums, int64_t length, T** targets) const {
        T* const outside = sums + p.in_height * p.in_width * length;
        const int32_t* const index = placed.index;
#pragma omp simd
        for (int64_t i = 0; i < 4 * num_points; ++i)
            targets[i] = index[i] < 0 ? outside : sums + index[i] * length;
    }

    void store_sums(const T* sums, const Segment& segment, T* grad, int64_t channel_stride,
                    int64_t row_stride, int64_t column_stride) const {
        const int64_t length = segment.end - segment.begin;
        for (int64_t y = 0; y < p.in_height; ++y)
            store_pixels(sums + y * p.in_width * length, length, p.in_width, length,
                         grad + segment.begin * channel_stride + y * row_stride, channel_stride,
                         column_stride);
    }
};

}  // namespace
}  // namespace LDA_AQU_ISA
