// Local deformable attention on the CPU, forward and backward. Compiled once for each instruction
// set, into the namespace LDA_AQU_ISA; so nothing here may instantiate inline functions of the
// standard library, of which the linker would keep one copy for all.
//
// One output pixel at a time: its k² x 4 taps (points x bilinear corners) are rows of channels in
// the channels-last key and value. Taps outside the map read a row of zeros. Nothing that grows with
// k² is kept beyond a pixel but, in the backward pass, its attention and the gradient of its logits.
//
// The same bits for any number of threads: every output is written by one pixel; the gradients of
// key and value, into which pixels scatter, are cut by channels, and each cut goes through all
// pixels in one order; that of the bias is summed over blocks of pixels of a fixed size.
#include <omp.h>

#include "problem.h"
#include "vectors.h"

namespace LDA_AQU_ISA {
namespace {

constexpr int64_t kBlock = 16;   // rows and columns of output pixels that are one unit of work
constexpr int64_t kChunk = 128;  // channels that one unit of the scatter handles at most
constexpr int64_t kPad = 16;     // keeps rows of a tile off the same cache sets

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

struct BFloat16 { uint16_t bits; };

template <typename S, typename T>
inline T widen(S x) { return static_cast<T>(x); }
template <>
inline float widen<BFloat16, float>(BFloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

template <typename S, typename T>
inline S narrow(T x) { return static_cast<S>(x); }
template <>
inline BFloat16 narrow<BFloat16, float>(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (x != x) return {static_cast<uint16_t>(bits >> 16 | 0x40)};  // NaN stays NaN
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};  // to nearest even
}

// exp(x) for x <= 0, so written that loops over it become vectors. NaN stays NaN.
inline float exp_negative(float x) {
    x = x < -87.0f ? -87.0f : x;
    const float shifted = x * 1.44269504f + 12582912.0f;  // the integer part of x / ln 2 in its low bits
    const float n = shifted - 12582912.0f;
    const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
    float y = 1.0f / 5040;
    y = y * r + 1.0f / 720;
    y = y * r + 1.0f / 120;
    y = y * r + 1.0f / 24;
    y = y * r + 1.0f / 6;
    y = y * r + 0.5f;
    y = y * r + 1.0f;
    y = y * r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, 4);
    bits = (bits << 23) + 0x3f800000u;
    float power;
    memcpy(&power, &bits, 4);
    return y * power;
}
inline double exp_negative(double x) { return __builtin_exp(x); }

inline float floor_of(float x) { return __builtin_floorf(x); }
inline double floor_of(double x) { return __builtin_floor(x); }
inline double sqrt_of(double x) { return __builtin_sqrt(x); }

// Consecutive channels that belong to one group and one head.
struct Segment {
    int64_t begin, end, group, head;
};

inline Segment segment_at(int64_t begin, int64_t channels, const Problem& p) {
    const int64_t group_width = channels / p.groups, head_width = channels / p.heads;
    const int64_t group = begin / group_width, head = begin / head_width;
    return {begin, min((group + 1) * group_width, (head + 1) * head_width), group, head};
}

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
    Taps<T>* taps;             // one for each group
    T* attention;              // (heads, points)
    T* grad_logits;            // (heads, points)
    T *key_dots, *value_dots;  // (segments, k², 4): q . key and grad . value at the taps
    T* tap_weights;            // (5, k²)
    const T** rows;            // (5, k²): where taps, and the bias, are read
    T** targets;               // (4, k²): where gradients are added
    T* tile;                   // (kBlock, C + kPad): output pixels of a row, or their gradients
};

template <typename T>
struct Kernel {
    const Problem& p;
    const int64_t num_points, points;
    const T *query, *key, *value, *offsets, *bias;
    const T scale, scale_y, scale_x;  // of the logits, and from output to input pixels
    T *row_base, *row_fraction, *column_base, *column_fraction;  // undeformed positions
    T* zeros;
    Scratch<T>* scratch;

    Kernel(const Problem& problem, Arena& arena)
        : p(problem),
          num_points(p.kernel_size * p.kernel_size),
          points(round_up(num_points, 16)),
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
            const int64_t segments = p.groups + p.heads;
            s.attention = arena.take<T>(p.heads * points);
            s.grad_logits = arena.take<T>(p.heads * points);
            s.key_dots = arena.take<T>(segments * 4 * num_points);
            s.value_dots = arena.take<T>(segments * 4 * num_points);
            s.tap_weights = arena.take<T>(5 * points);
            s.rows = arena.take<const T*>(5 * points);
            s.targets = arena.take<T*>(4 * points);
            s.tile = arena.take<T>(kBlock * tile_stride());
            if (arena.base) scratch[thread] = s;
        }
    }

    static double ratio(int64_t in, int64_t out) {
        return out > 1 ? static_cast<double>(in - 1) / static_cast<double>(out - 1) : 0.0;
    }

    int64_t tile_stride() const { return p.channels + kPad; }
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
        for (int64_t thread = 0; thread < p.threads; ++thread)
            for (int64_t group = 0; group < p.groups; ++group) {
                const Taps<T>& taps = scratch[thread].taps[group];
                for (int64_t i = num_points; i < points; ++i)  // only ever read in vain
                    taps.base_y[i] = taps.base_x[i] = taps.y[i] = taps.x[i] = 0;
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

    // Calls visit(n, y, x_begin, x_end) for each row of a block.
    template <typename F>
    void for_rows_of_block(int64_t block, F visit) const {
        const int64_t n = block / blocks_per_image();
        const int64_t y = block % blocks_per_image() / block_columns() * kBlock;
        const int64_t x = block % block_columns() * kBlock;
        for (int64_t i = y; i < min(y + kBlock, p.out_height); ++i)
            visit(n, i, x, min(x + kBlock, p.out_width));
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

    // Splits positions into the cell of the input grid, clamped to [-2, size], and the fraction
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
        for (int64_t i = 0; i < num_points; ++i) {
            const T* const corners[4] = {rows[i], rows[num_points + i], rows[2 * num_points + i],
                                         rows[3 * num_points + i]};
            T* four = dots + 4 * i;
            four[0] = four[1] = four[2] = four[3] = 0;
            add_dots<T>(x, corners, length, four);
            for (int64_t corner = 0; corner < 4; ++corner)
                into[i] += taps.weights[corner * num_points + i] * four[corner];
        }
    }

    // Places the taps of all groups and computes s.attention; leaves q . key at the taps in
    // s.key_dots.
    void attend(int64_t n, int64_t y, int64_t x, const Scratch<T>& s) const {
        const T* q = query + output_pixel(n, y, x) * p.depth;
        for (int64_t group = 0; group < p.groups; ++group) place_taps(n, group, y, x, s.taps[group]);

        for (int64_t i = 0; i < p.heads * points; ++i) s.attention[i] = 0;
        if (bias) add_bias(q, s);
        const T* image = key + n * p.in_height * p.in_width * p.depth;
        T* dots = s.key_dots;
        for (int64_t at = 0; at < p.depth; dots += 4 * num_points) {
            const Segment segment = segment_at(at, p.depth, p);
            add_point_dots(s.taps[segment.group], q + at, image + at, p.depth, segment.end - at,
                           s.rows, dots, s.attention + segment.head * points);
            at = segment.end;
        }
        for (int64_t head = 0; head < p.heads; ++head) softmax(s.attention + head * points);
    }

    void add_bias(const T* q, const Scratch<T>& s) const {
        const int64_t width = p.depth / p.heads;
        for (int64_t head = 0; head < p.heads; ++head)
            for (int64_t i = 0; i < num_points; i += 4) {
                const T* rows[4];
                T sums[4] = {};
                for (int64_t r = 0; r < 4; ++r)
                    rows[r] = bias + (head * num_points + min(i + r, num_points - 1)) * width;
                add_dots<T>(q + head * width, rows, width, sums);
                for (int64_t r = 0; r < min(4, num_points - i); ++r)
                    s.attention[head * points + i + r] = sums[r];
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

    template <typename S>
    void forward() const {
#pragma omp parallel for num_threads(static_cast<int>(p.threads)) schedule(dynamic)
        for (int64_t block = 0; block < blocks(); ++block) {
            const Scratch<T>& s = scratch[omp_get_thread_num()];
            for_rows_of_block(block, [&](int64_t n, int64_t y, int64_t begin, int64_t end) {
                for (int64_t x = begin; x < end; ++x)
                    forward_pixel(n, y, x, s, s.tile + (x - begin) * tile_stride());
                store_tile<S>(n, y, begin, end, s.tile);
            });
        }
    }

    void forward_pixel(int64_t n, int64_t y, int64_t x, const Scratch<T>& s, T* out) const {
        attend(n, y, x, s);
        const T* image = value + n * p.in_height * p.in_width * p.channels;
        for (int64_t at = 0; at < p.channels;) {
            const Segment segment = segment_at(at, p.channels, p);
            const Taps<T>& taps = s.taps[segment.group];
            find_rows(taps, image + at, p.channels, s.rows);
            weigh_taps(taps, s.attention + segment.head * points, s.tap_weights);
            weighted_sum<T>(s.tap_weights, s.rows, 4 * num_points, segment.end - at, out + at);
            at = segment.end;
        }
    }

    // Writes a tile to pixels [begin, end) of a row of the output.
    template <typename S>
    void store_tile(int64_t n, int64_t y, int64_t begin, int64_t end, const T* tile) const {
        const int64_t* stride = p.output_strides;
        const int64_t width = end - begin;
        S* out = static_cast<S*>(p.output) + n * stride[0] + y * stride[2] + begin * stride[3];
        if (stride[1] == 1) {
            for (int64_t x = 0; x < width; ++x)
                convert(tile + x * tile_stride(), p.channels, out + x * stride[3], 1);
            return;
        }
        T turned[kBlock * kBlock];
        for (int64_t first = 0; first < p.channels; first += kBlock) {
            const int64_t count = min(kBlock, p.channels - first);
            transpose(tile + first, tile_stride(), width, count, turned, kBlock);
            for (int64_t c = 0; c < count; ++c)
                convert(turned + c * kBlock, width, out + (first + c) * stride[1], stride[3]);
        }
    }

    // Channels [first, first + count) of the output's gradient at pixels [begin, end) of a row.
    template <typename S>
    void load_tile(int64_t n, int64_t y, int64_t begin, int64_t end, int64_t first, int64_t count,
                   T* tile) const {
        const int64_t* stride = p.output_strides;
        const int64_t width = end - begin;
        const S* grad = static_cast<const S*>(p.grad_output) + n * stride[0] + first * stride[1] +
                        y * stride[2] + begin * stride[3];
        if (stride[1] == 1) {
            for (int64_t x = 0; x < width; ++x)
                for (int64_t c = 0; c < count; ++c)
                    tile[x * tile_stride() + c] = widen<S, T>(grad[x * stride[3] + c]);
            return;
        }
        T turned[kBlock * kBlock];
        for (int64_t at = 0; at < count; at += kBlock) {
            const int64_t channels = min(kBlock, count - at);
            for (int64_t c = 0; c < channels; ++c)
                for (int64_t x = 0; x < width; ++x)
                    turned[c * kBlock + x] = widen<S, T>(grad[(at + c) * stride[1] + x * stride[3]]);
            transpose(turned, kBlock, channels, width, tile + at, tile_stride());
        }
    }

    template <typename S>
    static void convert(const T* in, int64_t length, S* out, int64_t out_stride) {
        if (out_stride == 1)
            for (int64_t i = 0; i < length; ++i) out[i] = narrow<S, T>(in[i]);
        else
            for (int64_t i = 0; i < length; ++i) out[i * out_stride] = narrow<S, T>(in[i]);
    }
};

// What the backward pass needs beyond the forward pass.
template <typename T>
struct BackwardKernel : Kernel<T> {
    using Base = Kernel<T>;
    using Base::p;
    using Base::num_points;
    using Base::points;

    T *attention, *grad_logits;  // (N, Y, X, heads, k²)
    T* bias_sums;                // (blocks, heads, k², d / heads)
    T* chunk_sums;               // (threads, H * W + 1, kChunk); the last row takes what is outside
    int64_t chunk;               // channels of a unit of the scatter

    BackwardKernel(const Problem& problem, Arena& arena) : Base(problem, arena) {
        const int64_t pixels = p.batch * p.out_height * p.out_width;
        attention = arena.take<T>(pixels * p.heads * num_points);
        grad_logits = arena.take<T>(pixels * p.heads * num_points);
        bias_sums = arena.take<T>(this->bias ? this->blocks() * num_points * p.depth : 0);
        chunk = kChunk;
        while (chunk > 16 && p.batch * (p.channels + p.depth) / chunk < 2 * p.threads) chunk /= 2;
        chunk_sums = arena.take<T>(p.threads * chunk_sums_size());
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
        for (int64_t block = 0; block < this->blocks(); ++block) {
            const Scratch<T>& s = this->scratch[omp_get_thread_num()];
            T* bias_sum = bias_sums + block * num_points * p.depth;
            if (this->bias)
                for (int64_t i = 0; i < num_points * p.depth; ++i) bias_sum[i] = 0;
            this->for_rows_of_block(block, [&](int64_t n, int64_t y, int64_t begin, int64_t end) {
                this->template load_tile<S>(n, y, begin, end, 0, p.channels, s.tile);
                for (int64_t x = begin; x < end; ++x)
                    gather_pixel(n, y, x, s, s.tile + (x - begin) * this->tile_stride(), bias_sum);
            });
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

    // The gradients that a pixel gathers: of its query, its offsets, its share of the bias'.
    void gather_pixel(int64_t n, int64_t y, int64_t x, const Scratch<T>& s, const T* grad,
                      T* bias_sum) const {
        this->attend(n, y, x, s);
        for (int64_t i = 0; i < p.heads * points; ++i) s.grad_logits[i] = 0;
        const T* image = this->value + n * p.in_height * p.in_width * p.channels;
        T* dots = s.value_dots;
        for (int64_t at = 0; at < p.channels; dots += 4 * num_points) {
            const Segment segment = segment_at(at, p.channels, p);
            this->add_point_dots(s.taps[segment.group], grad + at, image + at, p.channels,
                                 segment.end - at, s.rows, dots,
                                 s.grad_logits + segment.head * points);
            at = segment.end;
        }
        const int64_t pixel = this->output_pixel(n, y, x);
        for (int64_t head = 0; head < p.heads; ++head) {
            const T* a = s.attention + head * points;
            T* g = s.grad_logits + head * points;
            T mean = 0;
            for (int64_t i = 0; i < num_points; ++i) mean += a[i] * g[i];
            for (int64_t i = 0; i < num_points; ++i) g[i] = a[i] * (g[i] - mean) * this->scale;
            const int64_t kept = (pixel * p.heads + head) * num_points;
            for (int64_t i = 0; i < num_points; ++i) {
                attention[kept + i] = a[i];
                grad_logits[kept + i] = g[i];
            }
        }
        store_grad_offsets(n, y, x, s);
        store_grad_query(n, pixel, s, bias_sum);
    }

    void store_grad_offsets(int64_t n, int64_t y, int64_t x, const Scratch<T>& s) const {
        const int64_t* stride = p.grad_offset_strides;
        T* grad_offsets = static_cast<T*>(p.grad_offsets) + n * stride[0] + y * stride[4] + x * stride[5];
        for (int64_t group = 0; group < p.groups; ++group)
            for (int64_t i = 0; i < num_points; ++i) {
                T* grad = grad_offsets + group * stride[1] + i * stride[2];
                grad[0] = grad[stride[3]] = 0;
            }
        add_grad_offsets(p.depth, s.key_dots, s.grad_logits, s, grad_offsets);
        add_grad_offsets(p.channels, s.value_dots, s.attention, s, grad_offsets);
    }

    // The derivative of a bilinear read by its position, times what the read was weighted with.
    void add_grad_offsets(int64_t channels, const T* dots, const T* factors, const Scratch<T>& s,
                          T* grad_offsets) const {
        const int64_t* stride = p.grad_offset_strides;
        for (int64_t at = 0; at < channels; dots += 4 * num_points) {
            const Segment segment = segment_at(at, channels, p);
            const Taps<T>& taps = s.taps[segment.group];
            const T* factor = factors + segment.head * points;
            for (int64_t i = 0; i < num_points; ++i) {
                const T *e = dots + 4 * i, wy = taps.y[i], wx = taps.x[i];
                T* grad = grad_offsets + segment.group * stride[1] + i * stride[2];
                grad[0] += factor[i] * this->scale_y * ((1 - wx) * (e[2] - e[0]) + wx * (e[3] - e[1]));
                grad[stride[3]] +=
                    factor[i] * this->scale_x * ((1 - wy) * (e[1] - e[0]) + wy * (e[3] - e[2]));
            }
            at = segment.end;
        }
    }

    void store_grad_query(int64_t n, int64_t pixel, const Scratch<T>& s, T* bias_sum) const {
        const T* q = this->query + pixel * p.depth;
        T* grad_query = static_cast<T*>(p.grad_query) + pixel * p.depth;
        const T* image = this->key + n * p.in_height * p.in_width * p.depth;
        const int64_t width = p.depth / p.heads;
        for (int64_t at = 0; at < p.depth;) {
            const Segment segment = segment_at(at, p.depth, p);
            const Taps<T>& taps = s.taps[segment.group];
            const T* factor = s.grad_logits + segment.head * points;
            this->find_rows(taps, image + at, p.depth, s.rows);
            this->weigh_taps(taps, factor, s.tap_weights);
            int64_t count = 4 * num_points;
            if (this->bias) {
                const int64_t first = segment.head * num_points * width + at - segment.head * width;
                for (int64_t i = 0; i < num_points; ++i, ++count) {
                    s.rows[count] = this->bias + first + i * width;
                    s.targets[i] = bias_sum + first + i * width;
                    s.tap_weights[count] = factor[i];
                }
                scatter<T>(factor, s.targets, num_points, segment.end - at, q + at);
            }
            weighted_sum<T>(s.tap_weights, s.rows, count, segment.end - at, grad_query + at);
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
        const Scratch<T>& s = this->scratch[thread];
        const Taps<T>& taps = s.taps[segment.group];
        T* const sums = chunk_sums + thread * chunk_sums_size();
        for (int64_t i = 0; i < (in_pixels + 1) * length; ++i) sums[i] = 0;

        const T* point_weights = is_value ? attention : grad_logits;
        for (int64_t b = 0; b < this->blocks_per_image(); ++b) {
            const int64_t block = n * this->blocks_per_image() + b;
            this->for_rows_of_block(block, [&](int64_t, int64_t y, int64_t begin, int64_t end) {
                if (is_value)
                    this->template load_tile<S>(n, y, begin, end, segment.begin, length, s.tile);
                for (int64_t x = begin; x < end; ++x) {
                    const int64_t pixel = this->output_pixel(n, y, x);
                    const T* source = is_value ? s.tile + (x - begin) * this->tile_stride()
                                               : this->query + pixel * p.depth + segment.begin;
                    this->place_taps(n, segment.group, y, x, taps);
                    this->weigh_taps(taps, point_weights + (pixel * p.heads + segment.head) * num_points,
                                     s.tap_weights);
                    find_targets(taps, sums, length, s.targets);
                    scatter<T>(s.tap_weights, s.targets, 4 * num_points, length, source);
                }
            });
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

    void find_targets(const Taps<T>& taps, T* sums, int64_t length, T** targets) const {
        T* const outside = sums + p.in_height * p.in_width * length;
        const int32_t* const index = taps.index;
#pragma omp simd
        for (int64_t i = 0; i < 4 * num_points; ++i)
            targets[i] = index[i] < 0 ? outside : sums + index[i] * length;
    }

    void store_sums(const T* sums, const Segment& segment, T* grad, int64_t channel_stride,
                    int64_t row_stride, int64_t column_stride) const {
        const int64_t length = segment.end - segment.begin;
        T turned[kBlock * kChunk];
        for (int64_t y = 0; y < p.in_height; ++y)
            for (int64_t first = 0; first < p.in_width; first += kBlock) {
                const int64_t width = min(kBlock, p.in_width - first);
                const T* tile = sums + (y * p.in_width + first) * length;
                T* out = grad + segment.begin * channel_stride + y * row_stride + first * column_stride;
                if (channel_stride == 1) {
                    for (int64_t x = 0; x < width; ++x)
                        for (int64_t c = 0; c < length; ++c)
                            out[x * column_stride + c] = tile[x * length + c];
                    continue;
                }
                transpose(tile, length, width, length, turned, kBlock);
                for (int64_t c = 0; c < length; ++c)
                    for (int64_t x = 0; x < width; ++x)
                        out[c * channel_stride + x * column_stride] = turned[c * kBlock + x];
            }
    }
};

template <typename T, typename S>
void run(const Problem& p, bool is_backward) {
    Arena arena{static_cast<char*>(p.workspace)};
    if (is_backward) {
        BackwardKernel<T> kernel(p, arena);
        kernel.prepare();
        kernel.template backward<S>();
    } else {
        Kernel<T> kernel(p, arena);
        kernel.prepare();
        kernel.template forward<S>();
    }
}

void run(const Problem& p, bool is_backward) {
    switch (p.output_dtype) {
        case kFloat64: return run<double, double>(p, is_backward);
        case kBFloat16: return run<float, BFloat16>(p, is_backward);
        case kFloat16: return run<float, _Float16>(p, is_backward);
        default: return run<float, float>(p, is_backward);
    }
}

template <typename T>
int64_t count_workspace(const Problem& p, bool is_backward) {
    Arena arena{nullptr};
    if (is_backward)
        BackwardKernel<T>(p, arena);
    else
        Kernel<T>(p, arena);
    return arena.used;
}

}  // namespace

int64_t workspace_size(const Problem& p, bool is_backward) {
    return p.output_dtype == kFloat64 ? count_workspace<double>(p, is_backward)
                                      : count_workspace<float>(p, is_backward);
}

void forward(const Problem& p) { run(p, false); }
void backward(const Problem& p) { run(p, true); }

}  // namespace LDA_AQU_ISA
