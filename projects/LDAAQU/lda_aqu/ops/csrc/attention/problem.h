// What the kernels are given. Mirrored, field by field, by AttentionProblem in
// ../../cpp/attention.py.
#pragma once
#include <cstdint>

namespace attention {

// Dense tensors are channels-last: query (N, Y, X, d), and the gradients of query and key.
// Strides are in elements. T is float, or double where `dtype` is kFloat64; only the output and its
// gradient have the dtype `dtype`.
struct Problem {
    int64_t batch, depth, channels, heads, groups, kernel_size;
    int64_t in_height, in_width, out_height, out_width;
    int64_t threads, dtype;
    int64_t offset_strides[6];       // (N, g, k², 2, Y, X)
    int64_t grad_offset_strides[6];  // (N, g, k², 2, Y, X)
    int64_t key_strides[4];          // (N, d, H, W)
    int64_t value_strides[4];        // (N, C, H, W)
    int64_t output_strides[4];       // (N, C, Y, X), of the output and of its gradient
    int64_t grad_value_strides[4];   // (N, C, H, W)

    const void *query, *key, *value, *offsets, *bias;  // bias (h, k², d / h) or null
    void* output;
    const void* grad_output;
    void *grad_query, *grad_key, *grad_value, *grad_offsets, *grad_bias;  // as their tensors
    void* workspace;
};

}  // namespace attention
