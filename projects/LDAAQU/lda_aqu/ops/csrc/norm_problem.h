// What the kernels of the normalisation are given. Mirrored by NormProblem in
// ../cpp/normalized_projection.py.
#pragma once
#include "attention_problem.h"

// `count` pixels from pixel `first` on, numbered (n, y, x), of a map (N, C, H, W). T is double where
// `dtype`, that of the map, is kFloat64, else float.
struct NormProblem {
    int64_t channels, height, width, first, count, threads, dtype;
    int64_t strides[4];  // of the map, in elements
    double epsilon;

    void* map;         // written by the backward pass: its gradient
    void* normalized;  // T (count, C)
    void* inverse;     // T (count): inverse deviations
    void* grad;        // T (count, C); overwritten
};
