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

constexpr int64_t kStrip = 16;  // consecutive pixels of a row whose numbers lie side by side

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
inline typename Vector<T, kBytes / 2>::type add_halves(
    typename Vector<T, kBytes>::type v, std::index_sequence<I...>) {
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

// The pieces of 16 bytes, added.
template <typename T, int kBytes>
inline typename Vector<T, 16>::type add_quarters(typename Vector<T, kBytes>::type v) {
    if constexpr (kBytes == 16)
        return v;
    else
        return add_quarters<T, kBytes / 2>(
            add_halves<T, kBytes>(v, std::make_index_sequence<Vector<T, kBytes>::lanes / 2>()));
}

// In each piece of 16 bytes, a and b of every other lane side by side, and the others, added.
template <typename V, size_t... I>
inline V add_even_and_odd(V a, V b, std::index_sequence<I...>) {
    constexpr int lanes = sizeof...(I);
    return __builtin_shufflevector(
               a, b, (I / 4 * 4 + I % 2 * 2 + (I % 4 / 2) * lanes)...) +
           __builtin_shufflevector(
               a, b, (I / 4 * 4 + I % 2 * 2 + 1 + (I % 4 / 2) * lanes)...);
}

// sums[i] = the sum of the lanes of v[i], on top of what is there if it `adds`.
template <typename T, int kBytes>
inline void sum_lanes(const typename Vector<T, kBytes>::type (&v)[4], bool adds, T* sums) {
    if constexpr (kBytes >= 16 && sizeof(T) == 4) {  // all four at once
        constexpr auto lanes = std::make_index_sequence<Vector<T, kBytes>::lanes>();
        const auto total = add_even_and_odd(add_even_and_odd(v[0], v[1], lanes),
                                            add_even_and_odd(v[2], v[3], lanes), lanes);
        const auto quarter = add_quarters<T, kBytes>(total);
        Vector<T, 16>::store(sums, adds ? Vector<T, 16>::load(sums) + quarter : quarter);
    } else {
        for (int i = 0; i < 4; ++i)
            sums[i] = (adds ? sums[i] : 0) + sum_of_lanes<T, kBytes>(v[i]);
    }
}

// Rows of channels, one for each pixel of a map; a row apart stands for all that is outside.
template <typename T>
struct Rows {
    T* base;
    int64_t stride;
    T* outside;

    T* at(int32_t pixel) const { return pixel < 0 ? outside : base + pixel * stride; }
};

// In what follows, the entries of lists of pixels and of weights are kStrip apart: they are those of
// one pixel of a strip.

// dots[i] = x . row i over `length` channels, kUnroll vectors at a time. Rows are taken in fours:
// up to three pixels are read, and dots written, beyond `count`.
template <typename T, int kBytes = kVectorBytes, int kUnroll = 8>
inline void compute_dots(const T* x, const Rows<const T>& rows, const int32_t* pixels, int64_t count,
                     int64_t length, T* dots, int64_t at = 0) {
    using V = Vector<T, kBytes>;
    constexpr int64_t step = kUnroll * V::lanes;
    for (; at + step <= length; at += step) {
        typename V::type channels[kUnroll];
        for (int u = 0; u < kUnroll; ++u) channels[u] = V::load(x + at + u * V::lanes);
        for (int64_t i = 0; i < count; i += 4) {
            typename V::type total[4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                const T* row = rows.at(pixels[(i + j) * kStrip]) + at;
                total[j] = channels[0] * V::load(row);
                for (int u = 1; u < kUnroll; ++u)
                    total[j] += channels[u] * V::load(row + u * V::lanes);
            }
            sum_lanes<T, kBytes>(total, at > 0, dots + i);
        }
    }
    if (at == length) return;
    if constexpr (kUnroll > 1)
        compute_dots<T, kBytes, kUnroll / 2>(x, rows, pixels, count, length, dots, at);
    else if constexpr (kBytes > sizeof(T))
        compute_dots<T, kBytes / 2, 1>(x, rows, pixels, count, length, dots, at);
}

// out += sum of weights[i] * row i over `length` channels, kUnroll vectors at a time.
template <typename T, bool kAdd, int kBytes = kVectorBytes, int kUnroll = 8>
inline void weighted_sum(const T* weights, const Rows<const T>& rows, const int32_t* pixels,
                         int64_t count, int64_t length, T* out, int64_t at = 0) {
    using V = Vector<T, kBytes>;
    constexpr int64_t step = kUnroll * V::lanes;
    for (; at + step <= length; at += step) {
        typename V::type total[kUnroll] = {};
        if constexpr (kAdd)
            for (int u = 0; u < kUnroll; ++u) total[u] = V::load(out + at + u * V::lanes);
        for (int64_t i = 0; i < count; ++i) {
            const T* row = rows.at(pixels[i * kStrip]) + at;
            for (int u = 0; u < kUnroll; ++u)
                total[u] += weights[i * kStrip] * V::load(row + u * V::lanes);
        }
        for (int u = 0; u < kUnroll; ++u) V::store(out + at + u * V::lanes, total[u]);
    }
    if (at == length) return;
    if constexpr (kUnroll > 1)
        weighted_sum<T, kAdd, kBytes, kUnroll / 2>(weights, rows, pixels, count, length, out, at);
    else if constexpr (kBytes > sizeof(T))
        weighted_sum<T, kAdd, kBytes / 2, 1>(weights, rows, pixels, count, length, out, at);
}

// row i += weights[i] * x over `length` channels, kUnroll vectors at a time.
template <typename T, int kBytes = kVectorBytes, int kUnroll = 8>
inline void scatter(const T* weights, const Rows<T>& rows, const int32_t* pixels, int64_t count,
                    int64_t length, const T* x, int64_t at = 0) {
    using V = Vector<T, kBytes>;
    constexpr int64_t step = kUnroll * V::lanes;
    for (; at + step <= length; at += step) {
        typename V::type channels[kUnroll];
        for (int u = 0; u < kUnroll; ++u) channels[u] = V::load(x + at + u * V::lanes);
        for (int64_t i = 0; i < count; ++i) {
            T* row = rows.at(pixels[i * kStrip]) + at;
            for (int u = 0; u < kUnroll; ++u) {
                T* target = row + u * V::lanes;
                V::store(target, V::load(target) + weights[i * kStrip] * channels[u]);
            }
        }
    }
    if (at == length) return;
    if constexpr (kUnroll > 1)
        scatter<T, kBytes, kUnroll / 2>(weights, rows, pixels, count, length, x, at);
    else if constexpr (kBytes > sizeof(T))
        scatter<T, kBytes / 2, 1>(weights, rows, pixels, count, length, x, at);
}

// One step of the transposition of a square of rows: of each two rows that are kApart apart, the
// blocks of kApart lanes off the diagonal change places.
template <typename V, int kApart, int kLanes, size_t... I>
inline void swap_blocks(V (&rows)[kLanes], std::index_sequence<I...> lanes) {
    if constexpr (kApart < kLanes) {
        for (int i = 0; i < kLanes; ++i)
            if (!(i & kApart)) {
                const V a = rows[i], b = rows[i + kApart];
                rows[i] = __builtin_shufflevector(
                    a, b, (I & kApart ? I - kApart + kLanes : I)...);
                rows[i + kApart] = __builtin_shufflevector(
                    a, b, (I & kApart ? I + kLanes : I + kApart)...);
            }
        swap_blocks<V, 2 * kApart, kLanes>(rows, lanes);
    }
}

// out[c * out_stride + r] = in[r * in_stride + c].
template <typename T, int kBytes = kVectorBytes>
inline void transpose(
    const T* in, int64_t in_stride, int64_t rows, int64_t columns, T* out, int64_t out_stride) {
    using V = Vector<T, kBytes>;
    constexpr int lanes = V::lanes;
    const int64_t whole_rows = rows / lanes * lanes, whole_columns = columns / lanes * lanes;
    const auto turn = [&](int64_t r, int64_t c) {
        typename V::type square[lanes];
        for (int i = 0; i < lanes; ++i) square[i] = V::load(in + (r + i) * in_stride + c);
        swap_blocks<typename V::type, 1, lanes>(square, std::make_index_sequence<lanes>());
        for (int i = 0; i < lanes; ++i) V::store(out + (c + i) * out_stride + r, square[i]);
    };
    if (in_stride > out_stride) {  // the longest runs where rows lie farthest apart
        for (int64_t r = 0; r < whole_rows; r += lanes)
            for (int64_t c = 0; c < whole_columns; c += lanes) turn(r, c);
    } else {
        for (int64_t c = 0; c < whole_columns; c += lanes)
            for (int64_t r = 0; r < whole_rows; r += lanes) turn(r, c);
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
