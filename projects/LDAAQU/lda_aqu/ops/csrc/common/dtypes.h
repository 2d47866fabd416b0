// The dtypes of tensors, and the types that kernels are compiled for.
#pragma once
#include "scalars.h"

namespace {

// In the order of DTYPES in ../../cpp/library.py.
enum Dtype : int64_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

// A type of stored numbers, and the one that they are computed in.
template <typename Stored, typename Computed>
struct Types {
    using S = Stored;
    using T = Computed;
};

// Calls f with the Types of a dtype.
template <typename F>
inline void with_types_of(int64_t dtype, const F& f) {
    switch (dtype) {
        case kFloat64: return f(Types<double, double>());
        case kBFloat16: return f(Types<BFloat16, float>());
        case kFloat16: return f(Types<_Float16, float>());
        default: return f(Types<float, float>());
    }
}

}  // namespace
