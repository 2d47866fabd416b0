// What the kernels are given. Mirrored, field by field, by ProjectionProblem in
// ../../cpp/projection.py.
#pragma once
#include <cstdint>

namespace projection {

// `count` pixels from pixel `first` on, numbered (n, y, x), of a map (N, C, H, W). T is double
// where `dtype`, that of the map, is kFloat64, else float.
struct Problem {
    int64_t channels, height, width, first, count, threads, dtype;
    int64_t map_strides[4];  // (N, C, H, W), in elements
    double epsilon;

    void* map;         // written by the backward pass: its gradient
    void* normalized;  // T (count, C)
    void* inverse;     // T (count): inverse deviations
    void* grad;        // T (count, C); overwritten
};

}  // namespace projection
