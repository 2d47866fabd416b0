// The memory that the kernels work in.
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
        U* piece = reinterpret_cast<U*>(base + used);
        used += round_up(count * static_cast<int64_t>(sizeof(U)), 64);
        return piece;
    }
};

}  // namespace
}  // namespace LDA_AQU_ISA
