// What the forward and the backward pass share: where the taps of pixels are, and their attention.
#pragma once
#include <omp.h>

#include "arena.h"
#include "layout.h"
#include "attention_problem.h"
#include "scalars.h"
#include "vectors.h"

namespace LDA_AQU_ISA {
namespace {

constexpr int64_t kBlockRows = 8;      // of a Block
constexpr int64_t kBlockColumns = 64;  // long enough runs for maps in which channels lie far apart
constexpr int64_t kPad = 16;           // keeps rows of a tile off the same cache sets

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

// Output pixels that are one unit of work.
struct Block {
    int64_t n, y, x, height, width;
    int64_t strips() const { return ceil_div(width, kStrip); }
    Strip strip(int64_t row, int64_t column) const {
        return {n, y + row, x + column * kStrip, min(kStrip, width - column * kStrip)};
    }
};

// The taps of the points of a strip and one group: where they are and what they weigh.
template <typename T>
struct Taps {
    T *y, *x;        // (k², kStrip): position within the cell of the input grid
    T* weights;      // (4, k², kStrip): of the corners (0, 0), (0, 1), (1, 0), (1, 1) of the cell
    int32_t* pixel;  // (4, k², kStrip): pixel of the input, or -1 outside it
};

// A map (N, groups, H, W, C / groups): the groups apart, so that rows of channels lie close together
// and use all sets of the cache.
template <typename T>
struct GroupedMap {
    T* data;
    int64_t channels;
};

// What one thread works with. Lanes of a strip beyond its width hold what is never used.
template <typename T>
struct Scratch {
    Taps<T>* taps;   // one for each group
    T* attention;    // (heads, k², kStrip), for the forward pass
    T* key_dots;     // (segments, 4, k², kStrip): q . key at the taps
    T* pixel_dots;   // (kStrip, dots of a pixel)
    T* tap_weights;  // (4, k², kStrip)
    T* tile;         // (kBlockColumns, C + kPad): a row of the output, or its gradient, in a block
};

template <typename T>
struct Kernel {
    const Problem& p;
    const int64_t num_points;
    const int64_t corner;  // k² * kStrip, between the corners of a tap
    const T *query, *offsets, *bias;
    const T scale, scale_y, scale_x;  // of the logits, and from output to input pixels
    T *row_base, *row_fraction, *column_base, *column_fraction;  // undeformed positions
    T* zeros;
    int32_t* bias_pixels;  // (k², rounded up to fours, kStrip): number of the point, or -1
    GroupedMap<T> key, value;
    Scratch<T>* scratch;

    Kernel(const Problem& problem, Arena& arena)
        : p(problem),
          num_points(p.kernel_size * p.kernel_size),
          corner(num_points * kStrip),
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
        zeros = arena.take<T>(p.channels > p.depth ? p.channels : p.depth);
        bias_pixels = arena.take<int32_t>(bias_pixels_size());
        key = {arena.take<T>(p.batch * in_pixels() * p.depth), p.depth};
        value = {arena.take<T>(p.batch * in_pixels() * p.channels), p.channels};
        scratch = arena.take<Scratch<T>>(p.threads);
        for (int64_t thread = 0; thread < p.threads; ++thread) {
            Scratch<T> s;
            s.taps = arena.take<Taps<T>>(p.groups);
            for (int64_t group = 0; group < p.groups; ++group) {
                Taps<T> taps;
                taps.y = arena.take<T>(corner);
                taps.x = arena.take<T>(corner);
                taps.weights = arena.take<T>(4 * corner);
                taps.pixel = arena.take<int32_t>(4 * corner);
                if (arena.base) s.taps[group] = taps;
            }
            s.attention = arena.take<T>(p.heads * corner);
            s.key_dots = arena.take<T>(segments() * 4 * corner);
            s.pixel_dots = arena.take<T>(kStrip * pixel_dots_stride());
            s.tap_weights = arena.take<T>(4 * corner);
            s.tile = arena.take<T>(kBlockColumns * tile_stride());
            if (arena.base) scratch[thread] = s;
        }
    }

    static double ratio(int64_t in, int64_t out) {
        return out > 1 ? static_cast<double>(in - 1) / static_cast<double>(out - 1) : 0.0;
    }

    int64_t in_pixels() const { return p.in_height * p.in_width; }
    int64_t segments() const { return p.groups + p.heads - 1; }  // at most
    int64_t bias_pixels_size() const { return round_up(num_points, 4) * kStrip; }
    int64_t pixel_dots_stride() const { return 4 * num_points + 4; }
    int64_t tile_stride() const { return p.channels + kPad; }
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
        for (int64_t c = 0; c < p.channels || c < p.depth; ++c) zeros[c] = 0;
        for (int64_t i = 0; i < bias_pixels_size(); ++i)
            bias_pixels[i] = i < corner ? static_cast<int32_t>(i / kStrip) : -1;
        move(static_cast<const T*>(p.key), p.key_strides, key);
        move(static_cast<const T*>(p.value), p.value_strides, value);
    }

    // From a map (N, C, H, W).
    void move(const T* source, const int64_t* stride, const GroupedMap<T>& map) const {
        const int64_t width = map.channels / p.groups;
#pragma omp parallel for num_threads(static_cast<int>(p.threads)) schedule(static)
        for (int64_t row = 0; row < p.batch * p.in_height; ++row) {
            const int64_t n = row / p.in_height, y = row % p.in_height;
            for (int64_t group = 0; group < p.groups; ++group)
                load_pixels(source + n * stride[0] + group * width * stride[1] + y * stride[2],
                            stride[1], stride[3], p.in_width, width,
                            map.data + ((n * p.groups + group) * p.in_height + y) * p.in_width * width,
                            width);
        }
    }

    // Whole and fraction apart, so that float32 loses nothing of the fraction in wide maps.
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
                            taps.pixel + i * kStrip);
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

    // One point of a strip: from offsets in y and x to positions within their cells, the weights of
    // the corners and their pixels.
    void place_point(T base_y, T fraction_y, const T* base_x, const T* fraction_x, T* y, T* x,
                     T* weights, int32_t* pixel) const {
        const int32_t width = static_cast<int32_t>(p.in_width);
        const T last_row = static_cast<T>(p.in_height), last_column = static_cast<T>(p.in_width);
        int32_t row[kStrip], column[kStrip];
#pragma omp simd
        for (int64_t i = 0; i < kStrip; ++i) {
            const T at_y = y[i] * scale_y + fraction_y, at_x = x[i] * scale_x + fraction_x[i];
            const T whole_y = floor_of(at_y), whole_x = floor_of(at_x);
            row[i] = cell(base_y + whole_y, last_row);
            column[i] = cell(base_x[i] + whole_x, last_column);
            y[i] = at_y - whole_y;
            x[i] = at_x - whole_x;
        }
        for (int32_t rank = 0; rank < 4; ++rank, weights += corner, pixel += corner) {
            const int32_t down = rank / 2, right = rank % 2;
            const uint32_t rows = static_cast<uint32_t>(p.in_height);
            const uint32_t columns = static_cast<uint32_t>(p.in_width);
#pragma omp simd
            for (int64_t i = 0; i < kStrip; ++i) {
                const int32_t at_y = row[i] + down, at_x = column[i] + right;
                const bool inside = (static_cast<uint32_t>(at_y) < rows) &
                                    (static_cast<uint32_t>(at_x) < columns);
                pixel[i] = inside ? at_y * width + at_x : -1;
                weights[i] = (down ? y[i] : 1 - y[i]) * (right ? x[i] : 1 - x[i]);
            }
        }
    }

    // The row or column of the input grid that a position is in, or -2 if it is not next to the map.
    // Compared before it is converted: it may be anything, NaN and infinity too.
    static inline int32_t cell(T at, T size) {
        return static_cast<int32_t>((at >= -1) & (at < size) ? at : static_cast<T>(-2));
    }

    // Where the channels of a segment are.
    Rows<const T> rows_of(const GroupedMap<T>& map, int64_t n, const Segment& segment) const {
        const int64_t width = map.channels / p.groups;
        return {map.data + (n * p.groups + segment.group) * in_pixels() * width +
                    segment.begin % width,
                width, zeros};
    }
    // Those of the bias of each point, from this channel of the query on.
    Rows<const T> bias_rows(int64_t channel) const {
        const int64_t width = p.depth / p.heads, head = channel / width;
        return {bias + head * num_points * width + channel % width, width, zeros};
    }

    // tap_weights = (of the points, from `factors`) x (of the corners).
    void weigh_taps(const Taps<T>& taps, const T* factors, T* tap_weights) const {
        for (int64_t at = 0; at < 4 * corner; at += corner)
#pragma omp simd
            for (int64_t i = 0; i < corner; ++i)
                tap_weights[at + i] = factors[i] * taps.weights[at + i];
    }

    // Places the taps of all groups and computes the attention (heads, k², kStrip); leaves q . key at
    // the taps.
    void attend(const Strip& s, const Scratch<T>& scratch, T* attention) const {
        for (int64_t group = 0; group < p.groups; ++group) place_taps(s, group, scratch.taps[group]);
        const T* q = query + output_pixel(s) * p.depth;
        const int64_t width = p.depth / p.heads;
        for (int64_t head = 0; head < p.heads; ++head) {
            T* const logits = attention + head * corner;
            if (bias)
                compute_strip_dots(s, q + head * width, p.depth, bias_rows(head * width), bias_pixels,
                                   num_points, width, scratch, logits);
            else
                for (int64_t i = 0; i < corner; ++i) logits[i] = 0;
        }
        add_point_dots(s, q, p.depth, key, scratch, scratch.key_dots, attention);
        softmax(attention);
    }

    // dots (count, kStrip) = x . row over `length` channels; x is a row for each pixel of the strip.
    void compute_strip_dots(const Strip& s, const T* x, int64_t x_stride, const Rows<const T>& rows,
                            const int32_t* pixels, int64_t count, int64_t length,
                            const Scratch<T>& scratch, T* dots) const {
        const int64_t stride = pixel_dots_stride();
        for (int64_t i = 0; i < s.width; ++i)
            compute_dots<T>(x + i * x_stride, rows, pixels + i, count, length,
                            scratch.pixel_dots + i * stride);
        transpose(scratch.pixel_dots, stride, s.width, count, dots, kStrip);
    }

    // dots (segments, 4, k², kStrip) = x . the map at each tap; into (heads, k², kStrip) +=
    // those, interpolated.
    void add_point_dots(const Strip& s, const T* x, int64_t x_stride, const GroupedMap<T>& map,
                        const Scratch<T>& scratch, T* dots, T* into) const {
        for (int64_t at = 0; at < map.channels; dots += 4 * corner) {
            const Segment segment = segment_at(at, map.channels, p);
            const Taps<T>& taps = scratch.taps[segment.group];
            compute_strip_dots(s, x + at, x_stride, rows_of(map, s.n, segment), taps.pixel,
                               4 * num_points, segment.length(), scratch, dots);
            T* const sums = into + segment.head * corner;
#pragma omp simd
            for (int64_t i = 0; i < corner; ++i)
                sums[i] +=
                    (taps.weights[i] * dots[i] + taps.weights[corner + i] * dots[corner + i]) +
                    (taps.weights[2 * corner + i] * dots[2 * corner + i] +
                     taps.weights[3 * corner + i] * dots[3 * corner + i]);
            at = segment.end;
        }
    }

    // From logits (heads, k², kStrip), before they are scaled, to the attention in their place.
    void softmax(T* logits) const {
        for (int64_t head = 0; head < p.heads; ++head, logits += corner) {
            T largest[kStrip], total[kStrip];
            for (int64_t i = 0; i < kStrip; ++i) largest[i] = logits[i], total[i] = 0;
            for (int64_t at = kStrip; at < corner; at += kStrip)
#pragma omp simd
                for (int64_t i = 0; i < kStrip; ++i)
                    largest[i] = logits[at + i] > largest[i] ? logits[at + i] : largest[i];
            for (int64_t at = 0; at < corner; at += kStrip)
#pragma omp simd
                for (int64_t i = 0; i < kStrip; ++i) {
                    logits[at + i] = exp_negative((logits[at + i] - largest[i]) * scale);
                    total[i] += logits[at + i];
                }
            for (int64_t i = 0; i < kStrip; ++i) total[i] = 1 / total[i];
            for (int64_t at = 0; at < corner; at += kStrip)
#pragma omp simd
                for (int64_t i = 0; i < kStrip; ++i) logits[at + i] *= total[i];
        }
    }
};

}  // namespace
}  // namespace LDA_AQU_ISA
