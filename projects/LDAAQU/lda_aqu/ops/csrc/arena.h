// The memory that the kernels work in, and that which they read.
#pragma once
#include "scalars.h"

namespace LDA_AQU_ISA {
namespace {

// Hands out consecutive pieces of a workspace, or just counts them where there is none.
struct Arena {
    char* base;
    int64_t used = 0;

    template <typename U>
    U* take(int64_t count) {
        U* piece = base ? reinterpret_cast<U*>(base + used) : nullptr;
        used += round_up(count * static_cast<int64_t>(sizeof(U)), 64);
        return piece;
    }
};

// Begins to read rows of contiguous elements.
template <typename S>
inline void prefetch(const S* first, int64_t row_stride, int64_t rows, int64_t length) {
    constexpr int64_t line = 64 / sizeof(S);
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = 0; i < length; i += line)
            __builtin_prefetch(first + r * row_stride + i, 0, 2);
}

}  // namespace
}  // namespace LDA_AQU_ISA
