// The gradients of local deformable attention: first those that output pixels gather, of the query,
// the offsets and the bias, then those that they scatter.
#pragma once
#include "scatter.h"

namespace attention::LDA_AQU_ISA {
namespace {

// What a thread works with beyond the scratch of its bases.
template <typename T>
struct GatherScratch {
    T* value_dots;    // (segments, k², 4, kStrip): grad . value at the taps
    T* grad_offsets;  // (2, k², kStrip)
};

template <typename T>
struct Backward : Scatter<T> {
    using Base = Scatter<T>;
    using Base::num_points;
    using Base::p;
    using Base::table_size;

    T* bias_sums;  // (blocks, heads, k², d / heads)
    GatherScratch<T>* gather_scratch;

    Backward(const Problem& problem, Arena& arena) : Base(problem, arena) {
        bias_sums = arena.take<T>(this->bias ? this->blocks() * num_points * p.depth : 0);
        gather_scratch = arena.take<GatherScratch<T>>(p.threads);
        for (int64_t thread = 0; thread < p.threads; ++thread) {
            GatherScratch<T> s;
            s.value_dots = arena.take<T>(this->segments() * 4 * table_size);
            s.grad_offsets = arena.take<T>(2 * table_size);
            if (arena.base) gather_scratch[thread] = s;
        }
    }

    template <typename S>
    void compute() const {
        this->prepare();
#pragma omp parallel for num_threads(static_cast<int>(p.threads)) schedule(dynamic)
        for (int64_t index = 0; index < this->blocks(); ++index) {
            const int thread = omp_get_thread_num();
            const Scratch<T>& scratch = this->scratch[thread];
            T* bias_sum = bias_sums + index * num_points * p.depth;
            if (this->bias)
                for (int64_t i = 0; i < num_points * p.depth; ++i) bias_sum[i] = 0;
            const Block block = this->block_at(index);
            for (int64_t row = 0; row < block.height; ++row) {
                this->template load_grad_output<S>(block, row, 0, p.channels, scratch.row,
                                                   this->row_stride());
                for (int64_t column = 0; column < block.strips(); ++column)
                    gather(block.strip(row, column), scratch,
                           scratch.row + column * kStrip * this->row_stride(),
                           gather_scratch[thread], bias_sum);
            }
        }
        if (this->bias) sum_bias();
        this->template scatter<S>();
    }

    // For a strip: its gradients of the query and the offsets, and what it adds to the bias'.
    void gather(const Strip& s, const Scratch<T>& scratch, const T* grad, const GatherScratch<T>& b,
                T* bias_sum) const {
        const int64_t kept = this->strip_index(s) * p.heads * table_size;
        T *const a = this->attention + kept, *const g = this->grad_logits + kept;
        this->attend(s, scratch, a);
        for (int64_t i = 0; i < p.heads * table_size; ++i) g[i] = 0;
        this->add_point_dots(s, grad, this->row_stride(), this->value, scratch, b.value_dots, g);
        softmax_backward(a, g);
        for (int64_t group = 0; group < p.groups; ++group)
            store_grad_offsets(s, group, a, g, scratch, b);
        const T* const q = this->query + this->output_pixel(s) * p.depth;
        store_grad_query(s, q, g, scratch);
        if (this->bias) add_bias_sum(s, q, g, bias_sum);
    }

    // Replaces the gradient g of the attention a by that of the logits, not yet scaled.
    void softmax_backward(const T* a, T* g) const {
        for (int64_t head = 0; head < p.heads; ++head, a += table_size, g += table_size) {
            T mean[kStrip] = {};
            for (int64_t at = 0; at < table_size; at += kStrip)
#pragma omp simd
                for (int64_t i = 0; i < kStrip; ++i) mean[i] += a[at + i] * g[at + i];
            for (int64_t at = 0; at < table_size; at += kStrip)
#pragma omp simd
                for (int64_t i = 0; i < kStrip; ++i)
                    g[at + i] = a[at + i] * (g[at + i] - mean[i]) * this->scale;
        }
    }

    void store_grad_offsets(const Strip& s, int64_t group, const T* a, const T* g,
                            const Scratch<T>& scratch, const GatherScratch<T>& b) const {
        for (int64_t i = 0; i < 2 * table_size; ++i) b.grad_offsets[i] = 0;
        add_grad_offsets(group, p.depth, scratch.key_dots, g, scratch.taps[group], b);
        add_grad_offsets(group, p.channels, b.value_dots, a, scratch.taps[group], b);
        const int64_t* stride = p.grad_offset_strides;
        T* grad = static_cast<T*>(p.grad_offsets) + s.n * stride[0] + group * stride[1] +
                  s.y * stride[4] + s.x * stride[5];
        for (int64_t n = 0; n < num_points; ++n)
            for (int64_t axis = 0; axis < 2; ++axis) {
                const T* const strip = b.grad_offsets + axis * table_size + n * kStrip;
                T* const row = grad + n * stride[2] + axis * stride[3];
                for (int64_t i = 0; i < s.width; ++i) row[i * stride[5]] = strip[i];
            }
    }

    // b.grad_offsets += factors x the derivative of each tap's bilinear read by its position.
    void add_grad_offsets(int64_t group, int64_t channels, const T* dots, const T* factors,
                          const Taps<T>& taps, const GatherScratch<T>& b) const {
        for (int64_t at = 0; at < channels; dots += 4 * table_size) {
            const Segment segment = segment_at(at, channels, p);
            at = segment.end;
            if (segment.group != group) continue;
            const T* const factor = factors + segment.head * table_size;
            for (int64_t point = 0; point < table_size; point += kStrip) {
                const T* const dot = dots + 4 * point;
#pragma omp simd
                for (int64_t i = 0; i < kStrip; ++i) {
                    const T wy = taps.y[point + i], wx = taps.x[point + i];
                    const T e0 = dot[i], e1 = dot[kStrip + i];
                    const T e2 = dot[2 * kStrip + i], e3 = dot[3 * kStrip + i];
                    b.grad_offsets[point + i] +=
                        factor[point + i] * this->scale_y * ((1 - wx) * (e2 - e0) + wx * (e3 - e1));
                    b.grad_offsets[table_size + point + i] +=
                        factor[point + i] * this->scale_x * ((1 - wy) * (e1 - e0) + wy * (e3 - e2));
                }
            }
        }
    }

    void store_grad_query(const Strip& s, const T* q, const T* g, const Scratch<T>& scratch) const {
        T* grad_query = static_cast<T*>(p.grad_query) + (q - this->query);
        for (int64_t at = 0; at < p.depth;) {
            const Segment segment = segment_at(at, p.depth, p);
            const Taps<T>& taps = scratch.taps[segment.group];
            const T* const factor = g + segment.head * table_size;
            const CornerRows<T> rows = this->rows_of(this->key, s.n, segment);
            this->weigh_taps(taps, factor, scratch.tap_weights);
            for (int64_t i = 0; i < s.width; ++i)
                weighted_sum<T>(scratch.tap_weights + i, rows, taps.cell + i, num_points,
                                segment.length(), grad_query + i * p.depth + at);
            if (this->bias) {
                const int64_t head_width = p.depth / p.heads;
                const T* const bias =
                    this->bias + segment.head * num_points * head_width + at % head_width;
                for (int64_t i = 0; i < s.width; ++i)
                    add_rows(factor + i, kStrip, bias, head_width, num_points, segment.length(),
                             grad_query + i * p.depth + at);
            }
            at = segment.end;
        }
    }

    // bias_sum (heads, k², d / heads) += the gradients of the logits x the queries of the strip.
    void add_bias_sum(const Strip& s, const T* q, const T* g, T* bias_sum) const {
        const int64_t head_width = p.depth / p.heads;
        for (int64_t head = 0; head < p.heads; ++head)
            for (int64_t n = 0; n < num_points; ++n) {
                const T* const factor = g + head * table_size + n * kStrip;
                add_rows(factor, 1, q + head * head_width, p.depth, s.width, head_width,
                         bias_sum + (head * num_points + n) * head_width);
            }
    }

    void sum_bias() const {
        T* grad_bias = static_cast<T*>(p.grad_bias);
        const int64_t size = num_points * p.depth;
        for (int64_t i = 0; i < size; ++i) grad_bias[i] = 0;
        for (int64_t block = 0; block < this->blocks(); ++block)
            for (int64_t i = 0; i < size; ++i) grad_bias[i] += bias_sums[block * size + i];
    }
};

}  // namespace
}  // namespace attention::LDA_AQU_ISA
