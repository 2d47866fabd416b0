// What the kernels are given. Mirrored, field by field, by OffsetNetworkProblem in
// ../../cpp/offset_network.py.
#pragma once
#include <cstdint>

namespace offset_network {

// T is double where `dtype`, that of the query, its source and their gradients, is kFloat64, else
// float. Everything else is T and dense, in the order of its axes. `grad_query` is the gradient of
// the source where there is one. c is d / g; o is 2 k².
struct Problem {
    int64_t batch, depth, groups, height, width;
    int64_t source_height, source_width;  // of the query before it is resized, or 0
    int64_t kernel_size, outputs, threads, dtype;
    int64_t query_strides[4];  // (N, d, Y, X), in elements
    int64_t grad_query_strides[4];
    double offset_range, epsilon;

    const void* source;                   // (N, H, W, d), that the query is resized from, or null
    void* query;                          // written where there is a source
    const void* depthwise;                // (c, 3, 3)
    const void *norm_weight, *norm_bias;  // (c)
    const void *conv_weight, *conv_bias;  // (o, c, k_e, k_e) and (o)
    void* offsets;                        // (N, g, o, Y, X); read by the backward pass
    const void* grad_offsets;
    const void* grad_resized;  // (N, Y, X, d), that of a resized query, or null
    void *grad_query, *grad_depthwise, *grad_norm_weight, *grad_norm_bias, *grad_conv_weight,
        *grad_conv_bias;
    void* workspace;
};

}  // namespace offset_network
