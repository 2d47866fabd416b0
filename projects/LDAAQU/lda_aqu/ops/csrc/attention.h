// What the forward and the backward pass share: where a pixel's taps are, and its attention.
#pragma once
#include <omp.h>

#include "problem.h"
#include "scalars.h"
#include "vectors.h"

namespace LDA_AQU_ISA {
namespace {

constexpr int64_t kBlock = 16;  // rows and columns of a Block
constexpr int64_t kPad = 16;    // keeps rows of a tile off the same cache sets

// Consecutive channels that belong to one group and one head.
struct Segment {
    int64_t begin, end, group, head;
};

inline Segment segment_at(int64_t begin, int64_t channels, const Problem& p) {
    const int64_t group_width = channels / p.groups, head_width = channels / p.heads;
    const int64_t group = begin / group_width, head = begin / head_width;
    return {begin, min((group + 1) * group_width, (head + 1) * head_width), group, head};
}

// Output pixels that are one unit of work.
struct Block {
    int64_t n, y, x, height, width;
    int64_t pixels() const { return height * width; }
};

// Hands out consecutive pieces of the workspace, or just counts them where there is none.
struct Arena {
    char* base;
    int64_t used = 0;

    template <typename U>
    U* take(int64_t count) {
        U* piece = reinterpret_cast<U*>(base + used);
        used += round_up(count * static_cast<int64_t>(sizeof(U)), 64);
        return piece;
    }
};

// The taps of the points of one pixel and one group: where they are and what they weigh.
template <typename T>
struct Taps {
    T *base_y, *base_x;        // (points): whole part of the undeformed position
    T *y, *x;                  // (points): the rest of the position; its fraction after `place_taps`
    int32_t *row, *column;     // (points): of the corner (0, 0)
    T* weights;                // (4, k²): of the corners (0, 0), (0, 1), (1, 0), (1, 1)
    int32_t* index;            // (4, k²): pixel of the input, or -1 outside it
};

// What one thread works with. `points` is k² rounded up, so that loops over points become vectors;
// where rows of k² follow one another, each such loop overwrites what the one before left over.
template <typename T>
struct Scratch {
    Taps<T>* taps;   // one for each group
    T* attention;    // (heads, points)
    T* key_dots;     // (segments, taps): q . key at the taps
    const T** rows;  // (5, k²): where taps, and the bias, are read
};

template <typename T>
struct Kernel {
    using V = Vector<T, kVectorBytes>;

    const Problem& p;
    const int64_t num_points, points;
    const int64_t taps;  // 4 k², and room to write the last k² in whole vectors
    const T *query, *key, *value, *offsets, *bias;
    const T scale, scale_y, scale_x;  // of the logits, and from output to input pixels
    T *row_base, *row_fraction, *column_base, *column_fraction;  // undeformed positions
    T* bias_columns;  // (heads, d / heads, points)
    T* zeros;
    Scratch<T>* scratch;

    Kernel(const Problem& problem, Arena& arena)
        : p(problem),
          num_points(p.kernel_size * p.kernel_size),
          points(round_up(num_points, 16)),
          taps(3 * num_points + points),
          query(static_cast<const T*>(p.query)),
          key(static_cast<const T*>(p.key)),
          value(static_cast<const T*>(p.value)),
          offsets(static_cast<const T*>(p.offsets)),
          bias(static_cast<const T*>(p.bias)),
          scale(static_cast<T>(1 / __builtin_sqrt(static_cast<double>(p.depth / p.heads)))),
          scale_y(static_cast<T>(ratio(p.in_height, p.out_height))),
          scale_x(static_cast<T>(ratio(p.in_width, p.out_width))) {
        const int64_t rows = p.out_height + p.kernel_size - 1;
        const int64_t columns = p.out_width + p.kernel_size - 1;
        row_base = arena.take<T>(rows);
        row_fraction = arena.take<T>(rows);
        column_base = arena.take<T>(columns);
        column_fraction = arena.take<T>(columns);
        bias_columns = arena.take<T>(bias ? p.depth * points : 0);
        zeros = arena.take<T>(p.channels > p.depth ? p.channels : p.depth);
        scratch = arena.take<Scratch<T>>(p.threads);
        for (int64_t thread = 0; thread < p.threads; ++thread) {
            Scratch<T> s;
            s.taps = arena.take<Taps<T>>(p.groups);
            for (int64_t group = 0; group < p.groups; ++group) {
                Taps<T> taps;
                taps.base_y = arena.take<T>(points);
                taps.base_x = arena.take<T>(points);
                taps.y = arena.take<T>(points);
                taps.x = arena.take<T>(points);
                taps.row = arena.take<int32_t>(points);
                taps.column = arena.take<int32_t>(points);
                taps.weights = arena.take<T>(4 * points);
                taps.index = arena.take<int32_t>(4 * points);
                if (arena.base) s.taps[group] = taps;
            }
            s.attention = arena.take<T>(p.heads * points);
            s.key_dots = arena.take<T>(segments() * taps);
            s.rows = arena.take<const T*>(5 * points);
            if (arena.base) scratch[thread] = s;
        }
    }

    static double ratio(int64_t in, int64_t out) {
        return out > 1 ? static_cast<double>(in - 1) / static_cast<double>(out - 1) : 0.0;
    }

    int64_t tile_stride() const { return p.channels + kPad; }
    int64_t tile_size() const { return round_up(kBlock * tile_stride(), 16); }
    int64_t segments() const { return p.groups + p.heads - 1; }  // at most
    int64_t block_rows() const { return ceil_div(p.out_height, kBlock); }
    int64_t block_columns() const { return ceil_div(p.out_width, kBlock); }
    int64_t blocks_per_image() const { return block_rows() * block_columns(); }
    int64_t blocks() const { return p.batch * blocks_per_image(); }
    int64_t output_pixel(int64_t n, int64_t y, int64_t x) const {
        return (n * p.out_height + y) * p.out_width + x;
    }

    void prepare() {
        fill_positions(p.in_height, p.out_height, row_base, row_fraction);
        fill_positions(p.in_width, p.out_width, column_base, column_fraction);
        for (int64_t c = 0; c < p.channels || c < p.depth; ++c) zeros[c] = 0;
        if (bias) {
            const int64_t width = p.depth / p.heads;
            for (int64_t head = 0; head < p.heads; ++head)
                for (int64_t c = 0; c < width; ++c)
                    for (int64_t i = 0; i < points; ++i)
                        bias_columns[(head * width + c) * points + i] =
                            i < num_points ? bias[(head * num_points + i) * width + c] : 0;
        }
        for (int64_t thread = 0; thread < p.threads; ++thread)
            for (int64_t group = 0; group < p.groups; ++group) {
                const Taps<T>& taps = scratch[thread].taps[group];
                for (int64_t i = num_points; i < points; ++i) {  // only ever read in vain
                    taps.base_y[i] = taps.base_x[i] = 0;
                    taps.y[i] = taps.x[i] = 0;
                }
            }
    }

    // Whole and fraction apart, so that float32 loses nothing of the fraction in wide maps.
    void fill_positions(int64_t in, int64_t out, T* base, T* fraction) const {
        const double step = ratio(in, out);
        for (int64_t i = 0; i < out + p.kernel_size - 1; ++i) {
            const double position = static_cast<double>(i - p.kernel_size / 2) * step;
            base[i] = static_cast<T>(__builtin_floor(position));
            fraction[i] = static_cast<T>(position - __builtin_floor(position));
        }
    }

    Block block_at(int64_t index) const {
        const int64_t y = index % blocks_per_image() / block_columns() * kBlock;
        const int64_t x = index % block_columns() * kBlock;
        return {index / blocks_per_image(), y, x, min(kBlock, p.out_height - y),
                min(kBlock, p.out_width - x)};
    }

    void place_taps(int64_t n, int64_t group, int64_t y, int64_t x, const Taps<T>& taps) const {
        const int64_t* stride = p.offset_strides;
        const T* offset = offsets + n * stride[0] + group * stride[1] + y * stride[4] + x * stride[5];
        for (int64_t i = 0, a = 0; a < p.kernel_size; ++a)
            for (int64_t b = 0; b < p.kernel_size; ++b, ++i) {
                taps.base_y[i] = row_base[y + a];
                taps.base_x[i] = column_base[x + b];
                taps.y[i] = offset[i * stride[2]] * scale_y + row_fraction[y + a];
                taps.x[i] = offset[i * stride[2] + stride[3]] * scale_x + column_fraction[x + b];
            }
        find_cells(taps.base_y, p.in_height, taps.y, taps.row);
        find_cells(taps.base_x, p.in_width, taps.x, taps.column);
        const int32_t height = static_cast<int32_t>(p.in_height);
        const int32_t width = static_cast<int32_t>(p.in_width);
        const T *const wy = taps.y, *const wx = taps.x;
        const int32_t *const row = taps.row, *const column = taps.column;
        for (int32_t corner = 0; corner < 4; ++corner) {
            const int32_t down = corner / 2, right = corner % 2;
            int32_t* const index = taps.index + corner * num_points;
            T* const weights = taps.weights + corner * num_points;
#pragma omp simd
            for (int64_t i = 0; i < points; ++i) {
                const int32_t at_y = row[i] + down, at_x = column[i] + right;
                const bool inside = (at_y >= 0) & (at_y < height) & (at_x >= 0) & (at_x < width);
                index[i] = inside ? at_y * width + at_x : -1;
                weights[i] = (down ? wy[i] : 1 - wy[i]) * (right ? wx[i] : 1 - wx[i]);
            }
        }
    }

    // Splits positions into the cell of the input grid, or -2, and the fraction
    // within it. Compared before it is converted: it may be anything, NaN and infinity too.
    void find_cells(const T* base, int64_t size, T* position, int32_t* cell) const {
        const T last = static_cast<T>(size);
#pragma omp simd
        for (int64_t i = 0; i < points; ++i) {
            const T whole = floor_of(position[i]), at = base[i] + whole;
            position[i] -= whole;
            cell[i] = static_cast<int32_t>((at >= -1) & (at < last) ? at : static_cast<T>(-2));
        }
    }

    // The rows of a segment's channels at each tap.
    void find_rows(const Taps<T>& taps, const T* source, int64_t channels, const T** rows) const {
        const T* const outside = zeros;
        const int32_t* const index = taps.index;
#pragma omp simd
        for (int64_t i = 0; i < 4 * num_points; ++i)
            rows[i] = index[i] < 0 ? outside : source + index[i] * channels;
    }

    // weights[taps] = (of the point, from `factors`) x (of the corner).
    void weigh_taps(const Taps<T>& taps, const T* factors, T* weights) const {
        for (int64_t corner = 0; corner < 4; ++corner) {
            const T* const corner_weights = taps.weights + corner * num_points;
            T* const out = weights + corner * num_points;
#pragma omp simd
            for (int64_t i = 0; i < points; ++i) out[i] = factors[i] * corner_weights[i];
        }
    }

    // dots[taps] = x . source at each tap; into[points] += those, interpolated.
    void add_point_dots(const Taps<T>& taps, const T* x, const T* source, int64_t channels,
                        int64_t length, const T** rows, T* dots, T* into) const {
        find_rows(taps, source, channels, rows);
        for (int64_t i = 0; i < 4 * num_points; i += 4) {
            dots[i] = dots[i + 1] = dots[i + 2] = dots[i + 3] = 0;
            add_dots<T>(x, rows + i, length, dots + i);
        }
        for (int64_t corner = 0; corner < 4; ++corner) {
            const T* const weights = taps.weights + corner * num_points;
            const T* const corner_dots = dots + corner * num_points;
#pragma omp simd
            for (int64_t i = 0; i < points; ++i) into[i] += weights[i] * corner_dots[i];
        }
    }

    // Places the taps of all groups and computes s.attention; leaves q . key at the taps in
    // s.key_dots.
    void attend(int64_t n, int64_t y, int64_t x, const Scratch<T>& s) const {
        const T* q = query + output_pixel(n, y, x) * p.depth;
        for (int64_t group = 0; group < p.groups; ++group) place_taps(n, group, y, x, s.taps[group]);

        start_logits(q, s.attention);
        const T* image = key + n * p.in_height * p.in_width * p.depth;
        T* dots = s.key_dots;
        for (int64_t at = 0; at < p.depth; dots += taps) {
            const Segment segment = segment_at(at, p.depth, p);
            add_point_dots(s.taps[segment.group], q + at, image + at, p.depth, segment.end - at,
                           s.rows, dots, s.attention + segment.head * points);
            at = segment.end;
        }
        for (int64_t head = 0; head < p.heads; ++head) softmax(s.attention + head * points);
    }

    // logits[heads, points] = q . bias
    void start_logits(const T* q, T* logits) const {
        const int64_t width = p.depth / p.heads;
        for (int64_t head = 0; head < p.heads; ++head)
            for (int64_t i = 0; i < points; i += V::lanes) {
                const T *x = q + head * width, *column = bias_columns + head * width * points + i;
                typename V::type total[4] = {};
                int64_t c = 0;
                if (bias) {
                    for (; c + 4 <= width; c += 4)
                        for (int64_t u = 0; u < 4; ++u)
                            total[u] += x[c + u] * V::load(column + (c + u) * points);
                    for (; c < width; ++c) total[0] += x[c] * V::load(column + c * points);
                }
                V::store(logits + head * points + i, (total[0] + total[1]) + (total[2] + total[3]));
            }
    }

    void softmax(T* logits) const {
        T largest = logits[0];
        for (int64_t i = 1; i < num_points; ++i)
            largest = logits[i] > largest ? logits[i] : largest;
#pragma omp simd
        for (int64_t i = 0; i < points; ++i)
            logits[i] = exp_negative((logits[i] - largest) * scale);
        T total = 0;
        for (int64_t i = 0; i < num_points; ++i) total += logits[i];
        const T inverse = 1 / total;
        for (int64_t i = 0; i < points; ++i) logits[i] *= inverse;
    }

};

}  // namespace
}  // namespace LDA_AQU_ISA
