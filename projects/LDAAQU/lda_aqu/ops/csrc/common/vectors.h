// Loops over contiguous channels in vectors of the widest registers that the file is compiled for.
// What is left over at the end goes through ever narrower vectors, down to one channel.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// Floats of a cache line, and of a register of the widest instruction set.
constexpr int64_t kLine = 16;
// Consecutive pixels of a row that are computed together, their numbers side by side. The same for
// all instruction sets and dtypes, as layouts and the order of sums depend on it.
constexpr int64_t kStrip = kLine;

template <typename T, int kBytes>
struct Vector {
    typedef T type __attribute__((vector_size(kBytes)));
    static constexpr int64_t lanes = kBytes / sizeof(T);

    static inline type load(const T* source) {
        type v;
        memcpy(&v, source, kBytes);
        return v;
    }
    static inline void store(T* target, type v) { memcpy(target, &v, kBytes); }
};

template <typename T, int kBytes, size_t... I>
inline typename Vector<T, kBytes / 2>::type add_halves(typename Vector<T, kBytes>::type v,
                                                       std::index_sequence<I...>) {
    constexpr int half = sizeof...(I);
    return __builtin_shufflevector(v, v, I...) + __builtin_shufflevector(v, v, (half + I)...);
}

template <typename T, int kBytes>
inline T sum_of_lanes(typename Vector<T, kBytes>::type v) {
    if constexpr (kBytes == sizeof(T)) {
        return v[0];
    } else if constexpr (kBytes == 2 * sizeof(T)) {
        return v[0] + v[1];
    } else {
        constexpr size_t half = Vector<T, kBytes>::lanes / 2;
        return sum_of_lanes<T, kBytes / 2>(
            add_halves<T, kBytes>(v, std::make_index_sequence<half>()));
    }
}

// The sum of the vector's pieces of 16 bytes.
template <typename T, int kBytes>
inline typename Vector<T, 16>::type add_quarters(typename Vector<T, kBytes>::type v) {
    if constexpr (kBytes == 16)
        return v;
    else
        return add_quarters<T, kBytes / 2>(
            add_halves<T, kBytes>(v, std::make_index_sequence<Vector<T, kBytes>::lanes / 2>()));
}

// In each piece of four lanes: a0 + a1, a2 + a3, b0 + b1, b2 + b3.
template <typename V, size_t... I>
inline V add_even_and_odd(V a, V b, std::index_sequence<I...>) {
    constexpr int lanes = sizeof...(I);
    return __builtin_shufflevector(a, b, (I / 4 * 4 + I % 2 * 2 + (I % 4 / 2) * lanes)...) +
           __builtin_shufflevector(a, b, (I / 4 * 4 + I % 2 * 2 + 1 + (I % 4 / 2) * lanes)...);
}

// sums[i] = the sum of the lanes of v[i], added to sums[i] if `adds`. Always inline, as v would
// otherwise be passed through memory.
template <typename T, int kBytes>
[[gnu::always_inline]] inline void sum_lanes(const typename Vector<T, kBytes>::type (&v)[4],
                                             bool adds, T* sums) {
    if constexpr (kBytes >= 16 && sizeof(T) == 4) {  // all four at once
        constexpr auto lanes = std::make_index_sequence<Vector<T, kBytes>::lanes>();
        const auto total = add_even_and_odd(add_even_and_odd(v[0], v[1], lanes),
                                            add_even_and_odd(v[2], v[3], lanes), lanes);
        const auto quarter = add_quarters<T, kBytes>(total);
        Vector<T, 16>::store(sums, adds ? Vector<T, 16>::load(sums) + quarter : quarter);
    } else {
        for (int i = 0; i < 4; ++i) sums[i] = (adds ? sums[i] : 0) + sum_of_lanes<T, kBytes>(v[i]);
    }
}

// Where the channels of a cell's corners are: the rows of channels of the corners (0, 0), (0, 1),
// (1, 0) and (1, 1) of cell 0, and the distance from one cell to the next.
template <typename T>
struct CornerRows {
    const T* corners[4];
    int64_t cell_stride;
};

// The next two functions work for one pixel of a strip: the entries of `cells` and `weights` that
// belong to it are kStrip apart.

// dots[4 * i + c] = x . corner c of cell i over `length` channels, kUnroll vectors at a time.
template <typename T, int kBytes = kVectorBytes, int kUnroll = 8>
inline void compute_dots(const T* x, CornerRows<T> rows, const int32_t* cells, int64_t count,
                         int64_t length, T* dots, int64_t at = 0) {
    using V = Vector<T, kBytes>;
    constexpr int64_t step = kUnroll * V::lanes;
    for (; at + step <= length; at += step) {
        typename V::type channels[kUnroll];
        for (int u = 0; u < kUnroll; ++u) channels[u] = V::load(x + at + u * V::lanes);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t cell = cells[i * kStrip] * rows.cell_stride + at;
            typename V::type total[4];
#pragma GCC unroll 4
            for (int c = 0; c < 4; ++c) {
                const T* const row = rows.corners[c] + cell;
                total[c] = channels[0] * V::load(row);
                for (int u = 1; u < kUnroll; ++u)
                    total[c] += channels[u] * V::load(row + u * V::lanes);
            }
            sum_lanes<T, kBytes>(total, at > 0, dots + 4 * i);
        }
    }
    if (at == length) return;
    if constexpr (kUnroll > 1)
        compute_dots<T, kBytes, kUnroll / 2>(x, rows, cells, count, length, dots, at);
    else if constexpr (kBytes > sizeof(T))
        compute_dots<T, kBytes / 2, 1>(x, rows, cells, count, length, dots, at);
}

// out = the sum of weights[c, i] * corner c of cell i over `length` channels, kUnroll vectors at a
// time; weights (4, count).
template <typename T, int kBytes = kVectorBytes, int kUnroll = 8>
inline void weighted_sum(const T* weights, CornerRows<T> rows, const int32_t* cells, int64_t count,
                         int64_t length, T* out, int64_t at = 0) {
    using V = Vector<T, kBytes>;
    constexpr int64_t step = kUnroll * V::lanes;
    // Several sums in turn, as an addition waits for the last one to the same sum.
    constexpr int kSums = kUnroll < 4 ? 4 : 1;
    const T* const weights_of[4] = {weights, weights + count * kStrip, weights + 2 * count * kStrip,
                                    weights + 3 * count * kStrip};
    for (; at + step <= length; at += step) {
        typename V::type total[kSums][kUnroll] = {};
        for (int64_t i = 0; i < count; ++i) {
            const int64_t cell = cells[i * kStrip] * rows.cell_stride + at;
            for (int c = 0; c < 4; ++c)
                for (int u = 0; u < kUnroll; ++u)
                    total[c % kSums][u] +=
                        weights_of[c][i * kStrip] * V::load(rows.corners[c] + cell + u * V::lanes);
        }
        for (int j = 1; j < kSums; ++j)
            for (int u = 0; u < kUnroll; ++u) total[0][u] += total[j][u];
        for (int u = 0; u < kUnroll; ++u) V::store(out + at + u * V::lanes, total[0][u]);
    }
    if (at == length) return;
    if constexpr (kUnroll > 1)
        weighted_sum<T, kBytes, kUnroll / 2>(weights, rows, cells, count, length, out, at);
    else if constexpr (kBytes > sizeof(T))
        weighted_sum<T, kBytes / 2, 1>(weights, rows, cells, count, length, out, at);
}

// Corner c of a cell += the sum of weights[i, c] * row_of(i) over `length` channels, for all taps i
// of the list that begins with `first`. kUnroll is what there are registers for.
template <typename T, int kBytes = kVectorBytes, int kUnroll = kBytes == 64 ? 4 : 2, typename RowOf>
inline void add_list(const T* weights, int32_t first, const int32_t* next, const RowOf& row_of,
                     int64_t length, T* const (&corners)[4], int64_t at = 0) {
    using V = Vector<T, kBytes>;
    constexpr int64_t step = kUnroll * V::lanes;
    for (; at + step <= length; at += step) {
        typename V::type sums[4][kUnroll];
        for (int c = 0; c < 4; ++c)
            for (int u = 0; u < kUnroll; ++u) sums[c][u] = V::load(corners[c] + at + u * V::lanes);
        for (int32_t i = first; i >= 0; i = next[i]) {
            const T* const row = row_of(i) + at;
            for (int u = 0; u < kUnroll; ++u)
                for (int c = 0; c < 4; ++c)
                    sums[c][u] += weights[int64_t{4} * i + c] * V::load(row + u * V::lanes);
        }
        for (int c = 0; c < 4; ++c)
            for (int u = 0; u < kUnroll; ++u) V::store(corners[c] + at + u * V::lanes, sums[c][u]);
    }
    if (at == length) return;
    if constexpr (kUnroll > 1)
        add_list<T, kBytes, kUnroll / 2>(weights, first, next, row_of, length, corners, at);
    else if constexpr (kBytes > sizeof(T))
        add_list<T, kBytes / 2, 1>(weights, first, next, row_of, length, corners, at);
}

// out += the sum of weights[i * weight_stride] * row i over `length` channels.
template <typename T, int kBytes = kVectorBytes, int kUnroll = 8>
inline void add_rows(const T* weights, int64_t weight_stride, const T* rows, int64_t row_stride,
                     int64_t count, int64_t length, T* out, int64_t at = 0) {
    using V = Vector<T, kBytes>;
    constexpr int64_t step = kUnroll * V::lanes;
    for (; at + step <= length; at += step) {
        typename V::type total[kUnroll];
        for (int u = 0; u < kUnroll; ++u) total[u] = V::load(out + at + u * V::lanes);
        for (int64_t i = 0; i < count; ++i)
            for (int u = 0; u < kUnroll; ++u)
                total[u] +=
                    weights[i * weight_stride] * V::load(rows + i * row_stride + at + u * V::lanes);
        for (int u = 0; u < kUnroll; ++u) V::store(out + at + u * V::lanes, total[u]);
    }
    if (at == length) return;
    if constexpr (kUnroll > 1)
        add_rows<T, kBytes, kUnroll / 2>(weights, weight_stride, rows, row_stride, count, length,
                                         out, at);
    else if constexpr (kBytes > sizeof(T))
        add_rows<T, kBytes / 2, 1>(weights, weight_stride, rows, row_stride, count, length, out,
                                   at);
}

// sums (count, kStrip) += weights (count, length) x strips (length, kStrip), kRows at a time.
template <typename T, int kRows = 8>
inline void add_products(const T* weights, const T* strips, int64_t count, int64_t length,
                         T* sums) {
    using V = Vector<T, kVectorBytes>;
    int64_t row = 0;
    for (; row + kRows <= count; row += kRows)
        for (int64_t at = 0; at < kStrip; at += V::lanes) {
            typename V::type total[kRows];
            for (int r = 0; r < kRows; ++r) total[r] = V::load(sums + (row + r) * kStrip + at);
            for (int64_t c = 0; c < length; ++c)
                for (int r = 0; r < kRows; ++r)
                    total[r] += weights[(row + r) * length + c] * V::load(strips + c * kStrip + at);
            for (int r = 0; r < kRows; ++r) V::store(sums + (row + r) * kStrip + at, total[r]);
        }
    if constexpr (kRows > 1)
        add_products<T, kRows / 2>(weights + row * length, strips, count - row, length,
                                   sums + row * kStrip);
}

// Transposes a square of rows in steps: in a step, each two rows that are kApart apart exchange the
// pieces of kApart lanes that lie off the diagonal.
template <typename V, int kApart, int kLanes, size_t... I>
inline void swap_lanes(V (&rows)[kLanes], std::index_sequence<I...> lanes) {
    if constexpr (kApart < kLanes) {
        for (int i = 0; i < kLanes; ++i)
            if (!(i & kApart)) {
                const V a = rows[i], b = rows[i + kApart];
                rows[i] = __builtin_shufflevector(a, b, (I & kApart ? I - kApart + kLanes : I)...);
                rows[i + kApart] =
                    __builtin_shufflevector(a, b, (I & kApart ? I + kLanes : I + kApart)...);
            }
        swap_lanes<V, 2 * kApart, kLanes>(rows, lanes);
    }
}

// out[c * out_stride + r] = in[r * in_stride + c]. Prefetches what is `ahead` elements
// after what it reads, unless that is 0.
template <typename T, int kBytes = kVectorBytes>
inline void transpose(const T* in, int64_t in_stride, int64_t rows, int64_t columns, T* out,
                      int64_t out_stride, int64_t ahead = 0) {
    using V = Vector<T, kBytes>;
    constexpr int lanes = V::lanes;
    const int64_t whole_rows = rows / lanes * lanes, whole_columns = columns / lanes * lanes;
    const auto transpose_square = [&](int64_t r, int64_t c) {
        typename V::type square[lanes];
        for (int i = 0; i < lanes; ++i) {
            const T* const source = in + (r + i) * in_stride + c;
            square[i] = V::load(source);
            if (ahead) __builtin_prefetch(source + ahead, 0, 2);
        }
        swap_lanes<typename V::type, 1, lanes>(square, std::make_index_sequence<lanes>());
        for (int i = 0; i < lanes; ++i) V::store(out + (c + i) * out_stride + r, square[i]);
    };
    if (in_stride > out_stride) {  // the inner loop goes along the closer rows
        for (int64_t r = 0; r < whole_rows; r += lanes)
            for (int64_t c = 0; c < whole_columns; c += lanes) transpose_square(r, c);
    } else {
        for (int64_t c = 0; c < whole_columns; c += lanes)
            for (int64_t r = 0; r < whole_rows; r += lanes) transpose_square(r, c);
    }
    if constexpr (kBytes > 16) {
        if (whole_columns < columns)
            transpose<T, kBytes / 2>(in + whole_columns, in_stride, whole_rows,
                                     columns - whole_columns, out + whole_columns * out_stride,
                                     out_stride);
        if (whole_rows < rows)
            transpose<T, kBytes / 2>(in + whole_rows * in_stride, in_stride, rows - whole_rows,
                                     columns, out + whole_rows, out_stride);
    } else {
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c)
                out[c * out_stride + r] = in[r * in_stride + c];
    }
}

}  // namespace
