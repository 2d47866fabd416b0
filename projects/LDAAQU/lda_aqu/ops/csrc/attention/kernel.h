// What forward and backward share: where the taps of output pixels are, and the attention.
#pragma once
#include <omp.h>

#include "../common/arena.h"
#include "../common/layout.h"
#include "problem.h"

namespace attention::LDA_AQU_ISA {
namespace {

constexpr int64_t kBlockRows = 8;
constexpr int64_t kBlockColumns = 64;  // enough to load whole cache lines of planar maps
constexpr int64_t kPad = kLine;        // keeps rows of channels off the same cache sets

// Consecutive channels that belong to one group and one head.
struct Segment {
    int64_t begin, end, group, head;
    int64_t length() const { return end - begin; }
};

inline Segment segment_at(int64_t begin, int64_t channels, const Problem& p) {
    const int64_t group_width = channels / p.groups, head_width = channels / p.heads;
    const int64_t group = begin / group_width, head = begin / head_width;
    return {begin, min((group + 1) * group_width, (head + 1) * head_width), group, head};
}

// Output pixels (y, x) to (y, x + width - 1) of image n; width is at most kStrip.
struct Strip {
    int64_t n, y, x, width;
};

// Output pixels that a thread computes at a time.
struct Block {
    int64_t n, y, x, height, width;
    int64_t strips() const { return ceil_div(width, kStrip); }
    Strip strip(int64_t row, int64_t column) const {
        return {n, y + row, x + column * kStrip, min(kStrip, width - column * kStrip)};
    }
};

// The taps of a strip and one group, in tables (k², kStrip).
template <typename T>
struct Taps {
    T *y, *x;       // position within the cell
    T* weights;     // (4, k², kStrip): of the corners (0, 0), (0, 1), (1, 0), (1, 1) of the cell
    int32_t* cell;  // number of the cell
};

// A copy of a map, (N, groups, bordered pixels, C / groups): the groups apart, so that rows of
// channels lie close together and use all sets of the cache. The border is zero, so that cells at
// the edge are like all others. A cell has the number of its corner (0, 0) among the bordered
// pixels.
template <typename T>
struct GroupedMap {
    T* data;
    int64_t channels;
};

// What one thread works with. Numbers of a strip's pixels beyond its width are never used.
template <typename T>
struct Scratch {
    Taps<T>* taps;   // one for each group
    T* attention;    // (heads, k², kStrip), for the forward pass
    T* query;        // (d, kStrip): transposed
    T* key_dots;     // (segments, k², 4, kStrip): q . key at the taps
    T* pixel_dots;   // (kStrip, k², 4)
    T* tap_weights;  // (4, k², kStrip)
    T* row;          // (kBlockColumns, C + kPad): a row of a block, of the output or its gradient
};

template <typename T>
struct Kernel {
    const Problem& p;
    const int64_t num_points;
    const int64_t table_size;  // k² * kStrip
    const T *query, *offsets, *bias;
    const T scale, scale_y, scale_x;  // of the logits, and from output to input pixels
    T *row_base, *row_fraction, *column_base, *column_fraction;  // undeformed positions
    GroupedMap<T> key, value;
    Scratch<T>* scratch;

    Kernel(const Problem& problem, Arena& arena)
        : p(problem),
          num_points(p.kernel_size * p.kernel_size),
          table_size(num_points * kStrip),
          query(static_cast<const T*>(p.query)),
          offsets(static_cast<const T*>(p.offsets)),
          bias(static_cast<const T*>(p.bias)),
          scale(static_cast<T>(1 / __builtin_sqrt(static_cast<double>(p.depth / p.heads)))),
          scale_y(static_cast<T>(ratio(p.in_height, p.out_height))),
          scale_x(static_cast<T>(ratio(p.in_width, p.out_width))) {
        const int64_t rows = p.out_height + p.kernel_size - 1;
        const int64_t columns = round_up(p.out_width, kStrip) + p.kernel_size - 1;
        row_base = arena.take<T>(rows);
        row_fraction = arena.take<T>(rows);
        column_base = arena.take<T>(columns);
        column_fraction = arena.take<T>(columns);
        key = {arena.take<T>(p.batch * bordered_pixels() * p.depth), p.depth};
        value = {arena.take<T>(p.batch * bordered_pixels() * p.channels), p.channels};
        scratch = arena.take<Scratch<T>>(p.threads);
        for (int64_t thread = 0; thread < p.threads; ++thread) {
            Scratch<T> s;
            s.taps = arena.take<Taps<T>>(p.groups);
            for (int64_t group = 0; group < p.groups; ++group) {
                Taps<T> taps;
                taps.y = arena.take<T>(table_size);
                taps.x = arena.take<T>(table_size);
                taps.weights = arena.take<T>(4 * table_size);
                taps.cell = arena.take<int32_t>(table_size);
                if (arena.base) s.taps[group] = taps;
            }
            s.attention = arena.take<T>(p.heads * table_size);
            s.query = arena.take<T>(p.depth * kStrip);
            s.key_dots = arena.take<T>(segments() * 4 * table_size);
            s.pixel_dots = arena.take<T>(4 * table_size);
            s.tap_weights = arena.take<T>(4 * table_size);
            s.row = arena.take<T>(kBlockColumns * row_stride());
            if (arena.base) scratch[thread] = s;
        }
    }

    static double ratio(int64_t in, int64_t out) {
        return out > 1 ? static_cast<double>(in - 1) / static_cast<double>(out - 1) : 0.0;
    }

    // The border of a map: a column to its left, which is also to the right of the row above, a row
    // above it, and two below it for the outside cell.
    int64_t bordered_width() const { return p.in_width + 1; }
    int64_t bordered_height() const { return p.in_height + 3; }
    int64_t bordered_pixels() const { return bordered_height() * bordered_width(); }
    // The cell of all positions that are in no cell with a pixel of the map; its corners are zero.
    int32_t outside_cell() const {
        return static_cast<int32_t>((p.in_height + 1) * bordered_width());
    }
    int64_t segments() const { return p.groups + p.heads - 1; }  // at most
    int64_t row_stride() const { return p.channels + kPad; }
    int64_t block_rows() const { return ceil_div(p.out_height, kBlockRows); }
    int64_t block_columns() const { return ceil_div(p.out_width, kBlockColumns); }
    int64_t strip_columns() const { return ceil_div(p.out_width, kStrip); }
    int64_t blocks_per_image() const { return block_rows() * block_columns(); }
    int64_t blocks() const { return p.batch * blocks_per_image(); }
    int64_t strips() const { return p.batch * p.out_height * strip_columns(); }
    int64_t output_pixel(const Strip& s) const {
        return (s.n * p.out_height + s.y) * p.out_width + s.x;
    }
    int64_t strip_index(const Strip& s) const {
        return (s.n * p.out_height + s.y) * strip_columns() + s.x / kStrip;
    }

    void prepare() const {
        fill_positions(p.in_height, p.out_height, p.out_height, row_base, row_fraction);
        fill_positions(p.in_width, p.out_width, round_up(p.out_width, kStrip), column_base,
                       column_fraction);
        copy_map(static_cast<const T*>(p.key), p.key_strides, key);
        copy_map(static_cast<const T*>(p.value), p.value_strides, value);
    }

    // From a map (N, C, H, W).
    void copy_map(const T* source, const int64_t* stride, const GroupedMap<T>& map) const {
        const int64_t group_width = map.channels / p.groups, rows = bordered_height();
        const int64_t row_size = bordered_width() * group_width;
#pragma omp parallel for num_threads(static_cast<int>(p.threads)) schedule(static)
        for (int64_t row = 0; row < p.batch * rows; ++row) {
            const int64_t n = row / rows, y = row % rows - 1;
            const bool inside = y >= 0 && y < p.in_height;
            for (int64_t group = 0; group < p.groups; ++group) {
                T* const target = map.data + ((n * p.groups + group) * rows + y + 1) * row_size;
                for (int64_t i = 0; i < (inside ? group_width : row_size); ++i) target[i] = 0;
                if (inside)
                    load_pixels(
                        source + n * stride[0] + group * group_width * stride[1] + y * stride[2],
                        stride[1], stride[3], p.in_width, group_width, target + group_width,
                        group_width, stride[2]);
            }
        }
    }

    // Of one axis. Whole and fraction apart, so that float32 loses nothing of the fraction in wide
    // maps.
    void fill_positions(int64_t in, int64_t out, int64_t count, T* base, T* fraction) const {
        const double step = ratio(in, out);
        for (int64_t i = 0; i < count + p.kernel_size - 1; ++i) {
            const double position = static_cast<double>(i - p.kernel_size / 2) * step;
            base[i] = static_cast<T>(__builtin_floor(position));
            fraction[i] = static_cast<T>(position - __builtin_floor(position));
        }
    }

    Block block_at(int64_t index) const {
        const int64_t y = index % blocks_per_image() / block_columns() * kBlockRows;
        const int64_t x = index % block_columns() * kBlockColumns;
        return {index / blocks_per_image(), y, x, min(kBlockRows, p.out_height - y),
                min(kBlockColumns, p.out_width - x)};
    }

    void place_taps(const Strip& s, int64_t group, const Taps<T>& taps) const {
        const int64_t* stride = p.offset_strides;
        const T* offset =
            offsets + s.n * stride[0] + group * stride[1] + s.y * stride[4] + s.x * stride[5];
        for (int64_t i = 0, a = 0; a < p.kernel_size; ++a)
            for (int64_t b = 0; b < p.kernel_size; ++b, ++i, offset += stride[2]) {
                T* const y = taps.y + i * kStrip;
                T* const x = taps.x + i * kStrip;
                prefetch(offset + stride[4], stride[3], 2, s.width);  // of the strip below
                load_strip(offset, stride[5], s.width, y);
                load_strip(offset + stride[3], stride[5], s.width, x);
                place_point(row_base[s.y + a], row_fraction[s.y + a], column_base + s.x + b,
                            column_fraction + s.x + b, y, x, taps.weights + i * kStrip,
                            taps.cell + i * kStrip);
            }
    }

    static void load_strip(const T* source, int64_t stride, int64_t width, T* strip) {
        if (stride == 1 && width == kStrip) {
            memcpy(strip, source, kStrip * sizeof(T));
        } else {
            for (int64_t i = 0; i < width; ++i) strip[i] = source[i * stride];
            for (int64_t i = width; i < kStrip; ++i) strip[i] = 0;
        }
    }

    // For one point of a strip's pixels. `y` and `x` are given as offsets and become the positions
    // within the cells.
    void place_point(T base_y, T fraction_y, const T* base_x, const T* fraction_x, T* y, T* x,
                     T* weights, int32_t* cell) const {
        const int32_t width = static_cast<int32_t>(bordered_width());
        const int32_t outside = outside_cell();
        const T last_row = static_cast<T>(p.in_height), last_column = static_cast<T>(p.in_width);
#pragma omp simd
        for (int64_t i = 0; i < kStrip; ++i) {
            const T at_y = y[i] * scale_y + fraction_y, at_x = x[i] * scale_x + fraction_x[i];
            const T whole_y = floor_of(at_y), whole_x = floor_of(at_x);
            const T row = base_y + whole_y, column = base_x[i] + whole_x;
            // Compared before they are converted: they may be anything, NaN and infinity too.
            const bool near =
                (row >= -1) & (row < last_row) & (column >= -1) & (column < last_column);
            const int32_t whole_row = static_cast<int32_t>(near ? row : 0);
            const int32_t whole_column = static_cast<int32_t>(near ? column : 0);
            cell[i] = near ? (whole_row + 1) * width + whole_column + 1 : outside;
            y[i] = at_y - whole_y;
            x[i] = at_x - whole_x;
        }
        for (int32_t rank = 0; rank < 4; ++rank, weights += table_size) {
            const int32_t down = rank / 2, right = rank % 2;
#pragma omp simd
            for (int64_t i = 0; i < kStrip; ++i)
                weights[i] = (down ? y[i] : 1 - y[i]) * (right ? x[i] : 1 - x[i]);
        }
    }

    // Where the channels of a segment are.
    CornerRows<T> rows_of(const GroupedMap<T>& map, int64_t n, const Segment& segment) const {
        const int64_t group_width = map.channels / p.groups;
        const T* const above = map.data + segment.begin % group_width +
                               (n * p.groups + segment.group) * bordered_pixels() * group_width;
        const T* const below = above + bordered_width() * group_width;
        return {{above, above + group_width, below, below + group_width}, group_width};
    }

    // tap_weights (4, k², kStrip) = factors (k², kStrip) x the weights of the corners.
    void weigh_taps(const Taps<T>& taps, const T* factors, T* tap_weights) const {
        for (int64_t at = 0; at < 4 * table_size; at += table_size)
#pragma omp simd
            for (int64_t i = 0; i < table_size; ++i)
                tap_weights[at + i] = factors[i] * taps.weights[at + i];
    }

    // Places the taps of all groups and computes the attention (heads, k², kStrip); q . key at the
    // taps stays in scratch.key_dots.
    void attend(const Strip& s, const Scratch<T>& scratch, T* attention) const {
        for (int64_t group = 0; group < p.groups; ++group)
            place_taps(s, group, scratch.taps[group]);
        const T* q = query + output_pixel(s) * p.depth;
        for (int64_t i = 0; i < p.heads * table_size; ++i) attention[i] = 0;
        if (bias) add_bias_dots(s, q, scratch.query, attention);
        add_point_dots(s, q, p.depth, key, scratch, scratch.key_dots, attention);
        softmax(attention);
    }

    // logits (heads, k², kStrip) += q . bias.
    void add_bias_dots(const Strip& s, const T* q, T* transposed_query, T* logits) const {
        const int64_t head_width = p.depth / p.heads;
        transpose(q, p.depth, s.width, p.depth, transposed_query, kStrip, p.out_width * p.depth);
        for (int64_t head = 0; head < p.heads; ++head)
            add_products(bias + head * num_points * head_width,
                         transposed_query + head * head_width * kStrip, num_points, head_width,
                         logits + head * table_size);
    }

    // dots (segments, k², 4, kStrip) = x . the map at the corners of each tap; sums (heads, k²,
    // kStrip) += x . the map at each tap.
    void add_point_dots(const Strip& s, const T* x, int64_t x_stride, const GroupedMap<T>& map,
                        const Scratch<T>& scratch, T* dots, T* sums) const {
        for (int64_t at = 0; at < map.channels; dots += 4 * table_size) {
            const Segment segment = segment_at(at, map.channels, p);
            const Taps<T>& taps = scratch.taps[segment.group];
            const CornerRows<T> rows = rows_of(map, s.n, segment);
            for (int64_t i = 0; i < s.width; ++i)
                compute_dots<T>(x + at + i * x_stride, rows, taps.cell + i, num_points,
                                segment.length(), scratch.pixel_dots + i * 4 * num_points);
            transpose(scratch.pixel_dots, 4 * num_points, s.width, 4 * num_points, dots, kStrip);
            add_interpolated(taps.weights, dots, sums + segment.head * table_size);
            at = segment.end;
        }
    }

    void add_interpolated(const T* weights, const T* dots, T* sums) const {
        for (int64_t point = 0; point < table_size; point += kStrip)
            for (int64_t c = 0; c < 4; ++c)
#pragma omp simd
                for (int64_t i = 0; i < kStrip; ++i)
                    sums[point + i] +=
                        weights[c * table_size + point + i] * dots[4 * point + c * kStrip + i];
    }

    // Replaces logits (heads, k², kStrip), not yet scaled, by the attention.
    void softmax(T* logits) const {
        for (int64_t head = 0; head < p.heads; ++head, logits += table_size) {
            T largest[kStrip], total[kStrip];
            for (int64_t i = 0; i < kStrip; ++i) largest[i] = logits[i], total[i] = 0;
            for (int64_t at = kStrip; at < table_size; at += kStrip)
#pragma omp simd
                for (int64_t i = 0; i < kStrip; ++i)
                    largest[i] = logits[at + i] > largest[i] ? logits[at + i] : largest[i];
            for (int64_t at = 0; at < table_size; at += kStrip)
#pragma omp simd
                for (int64_t i = 0; i < kStrip; ++i) {
                    logits[at + i] = exp_negative((logits[at + i] - largest[i]) * scale);
                    total[i] += logits[at + i];
                }
            for (int64_t i = 0; i < kStrip; ++i) total[i] = 1 / total[i];
            for (int64_t at = 0; at < table_size; at += kStrip)
#pragma omp simd
                for (int64_t i = 0; i < kStrip; ++i) logits[at + i] *= total[i];
        }
    }
};

}  // namespace
}  // namespace attention::LDA_AQU_ISA
