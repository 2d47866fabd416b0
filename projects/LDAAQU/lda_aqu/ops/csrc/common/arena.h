// The workspace that kernels compute in.
#pragma once
#include "dtypes.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace {

// Hands out consecutive pieces of a workspace, or just counts them where there is none.
struct Arena {
    char* base;
    int64_t used = 0;

    template <typename U>
    U* take(int64_t count) {
        U* piece = base ? reinterpret_cast<U*>(base + used) : nullptr;
        const int64_t end = used + count * static_cast<int64_t>(sizeof(U));
        used = round_up(end, 64);
#ifdef __SANITIZE_ADDRESS__  // so that it sees accesses beyond a piece
        used += 64;
        if (base) ASAN_POISON_MEMORY_REGION(base + end, used - end);
#endif
        return piece;
    }
};

// A Kernel<T> takes what it needs from an arena when it is constructed. This is how much, in bytes.
template <template <typename> class Kernel, typename Problem>
inline int64_t workspace_size_of(const Problem& p) {
    Arena arena{nullptr};
    if (p.dtype == kFloat64)
        Kernel<double>(p, arena);
    else
        Kernel<float>(p, arena);
    return arena.used;
}

// Constructs a Kernel<T> in the workspace of a problem and has it compute.
template <template <typename> class Kernel, typename Problem>
inline void compute(const Problem& p) {
    with_types_of(p.dtype, [&p](auto types) {
        Arena arena{static_cast<char*>(p.workspace)};
        Kernel<typename decltype(types)::T>(p, arena)
            .template compute<typename decltype(types)::S>();
    });
}

}  // namespace
