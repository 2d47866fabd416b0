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

// sums[i] += the sum of the lanes of v[i].
template <typename T, int kBytes>
inline void add_sums_of_lanes(const typename Vector<T, kBytes>::type (&v)[4], T* sums) {
    if constexpr (kBytes == 16 && sizeof(T) == 4) {  // transpose and add, all four at once
        const auto a = __builtin_shufflevector(v[0], v[1], 0, 4, 1, 5) +
                       __builtin_shufflevector(v[0], v[1], 2, 6, 3, 7);
        const auto b = __builtin_shufflevector(v[2], v[3], 0, 4, 1, 5) +
                       __builtin_shufflevector(v[2], v[3], 2, 6, 3, 7);
        const auto total = __builtin_shufflevector(a, b, 0, 1, 4, 5) +
                           __builtin_shufflevector(a, b, 2, 3, 6, 7);
        Vector<T, 16>::store(sums, Vector<T, 16>::load(sums) + total);
    } else if constexpr (kBytes > 16) {
        constexpr auto half = std::make_index_sequence<Vector<T, kBytes>::lanes / 2>();
        const typename Vector<T, kBytes / 2>::type halves[4] = {
            add_halves<T, kBytes>(v[0], half), add_halves<T, kBytes>(v[1], half),
            add_halves<T, kBytes>(v[2], half), add_halves<T, kBytes>(v[3], half)};
        add_sums_of_lanes<T, kBytes / 2>(halves, sums);
    } else {
        for (int i = 0; i < 4; ++i) sums[i] += sum_of_lanes<T, kBytes>(v[i]);
    }
}

// Rows are short: what wider registers gain in the loop they lose in summing their lanes.
constexpr int kDotBytes = kVectorBytes < 32 ? kVectorBytes : 32;

// sums[i] += x . rows[i] over `length` channels, for four rows.
template <typename T, int kBytes = kDotBytes>
inline void add_dots(const T* x, const T* const* rows, int64_t length, T* sums, int64_t at = 0) {
    using V = Vector<T, kBytes>;
    if (at + V::lanes <= length) {
        typename V::type total[4] = {};
        for (; at + V::lanes <= length; at += V::lanes) {
            const auto channels = V::load(x + at);
            for (int i = 0; i < 4; ++i) total[i] += channels * V::load(rows[i] + at);
        }
        add_sums_of_lanes<T, kBytes>(total, sums);
    }
    if constexpr (kBytes > sizeof(T))
        if (at < length) add_dots<T, kBytes / 2>(x, rows, length, sums, at);
}

// out = sum of weights[i] * rows[i] over `length` channels, kUnroll vectors at a time.
template <typename T, int kBytes = kVectorBytes, int kUnroll = 8>
inline void weighted_sum(
    const T* weights, const T* const* rows, int64_t count, int64_t length, T* out, int64_t at = 0) {
    using V = Vector<T, kBytes>;
    constexpr int64_t step = kUnroll * V::lanes;
    for (; at + step <= length; at += step) {
        typename V::type total[kUnroll] = {};
        for (int64_t i = 0; i < count; ++i) {
            const T* row = rows[i] + at;
            for (int u = 0; u < kUnroll; ++u)
                total[u] += weights[i] * V::load(row + u * V::lanes);
        }
        for (int u = 0; u < kUnroll; ++u) V::store(out + at + u * V::lanes, total[u]);
    }
    if (at == length) return;
    if constexpr (kUnroll > 1)
        weighted_sum<T, kBytes, kUnroll / 2>(weights, rows, count, length, out, at);
    else if constexpr (kBytes > sizeof(T))
        weighted_sum<T, kBytes / 2, 1>(weights, rows, count, length, out, at);
}

// rows[i] += weights[i] * x over `length` channels, kUnroll vectors at a time.
template <typename T, int kBytes = kVectorBytes, int kUnroll = 4>
inline void scatter(
    const T* weights, T* const* rows, int64_t count, int64_t length, const T* x, int64_t at = 0) {
    using V = Vector<T, kBytes>;
    constexpr int64_t step = kUnroll * V::lanes;
    for (; at + step <= length; at += step) {
        typename V::type channels[kUnroll];
        for (int u = 0; u < kUnroll; ++u) channels[u] = V::load(x + at + u * V::lanes);
        for (int64_t i = 0; i < count; ++i) {
            T* row = rows[i] + at;
            for (int u = 0; u < kUnroll; ++u) {
                T* target = row + u * V::lanes;
                V::store(target, V::load(target) + weights[i] * channels[u]);
            }
        }
    }
    if (at == length) return;
    if constexpr (kUnroll > 1)
        scatter<T, kBytes, kUnroll / 2>(weights, rows, count, length, x, at);
    else if constexpr (kBytes > sizeof(T))
        scatter<T, kBytes / 2, 1>(weights, rows, count, length, x, at);
}

// out[c * out_stride + r] = in[r * in_stride + c].
template <typename T>
inline void transpose(
    const T* in, int64_t in_stride, int64_t rows, int64_t columns, T* out, int64_t out_stride) {
    int64_t r = 0;
    if constexpr (sizeof(T) == 4)
        for (; r + 4 <= rows; r += 4) {
            int64_t c = 0;
            for (; c + 4 <= columns; c += 4) {
                using V = Vector<T, 16>;
                const T* block = in + r * in_stride + c;
                const auto v0 = V::load(block), v1 = V::load(block + in_stride);
                const auto v2 = V::load(block + 2 * in_stride), v3 = V::load(block + 3 * in_stride);
                const auto a = __builtin_shufflevector(v0, v1, 0, 4, 1, 5);
                const auto b = __builtin_shufflevector(v2, v3, 0, 4, 1, 5);
                const auto d = __builtin_shufflevector(v0, v1, 2, 6, 3, 7);
                const auto e = __builtin_shufflevector(v2, v3, 2, 6, 3, 7);
                T* target = out + c * out_stride + r;
                V::store(target, __builtin_shufflevector(a, b, 0, 1, 4, 5));
                V::store(target + out_stride, __builtin_shufflevector(a, b, 2, 3, 6, 7));
                V::store(target + 2 * out_stride, __builtin_shufflevector(d, e, 0, 1, 4, 5));
                V::store(target + 3 * out_stride, __builtin_shufflevector(d, e, 2, 3, 6, 7));
            }
            for (; c < columns; ++c)
                for (int64_t i = r; i < r + 4; ++i) out[c * out_stride + i] = in[i * in_stride + c];
        }
    for (; r < rows; ++r)
        for (int64_t c = 0; c < columns; ++c) out[c * out_stride + r] = in[r * in_stride + c];
}

}  // namespace
