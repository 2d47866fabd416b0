// Local deformable attention on the CPU, forward and backward. Compiled once for each instruction
// set, into the namespace LDA_AQU_ISA; so nothing here may instantiate inline functions of the
// standard library, of which the linker would keep one copy for all.
//
// One strip of output pixels at a time. Where its taps are (k² points x 4 bilinear corners) and what
// they weigh is computed in vectors over the pixels; what is read there, in vectors over the
// channels: rows of key and value, moved so that those of a group lie together, with a border of
// zeros that taps outside the map read. Nothing that grows with k² is kept for the whole map but,
// in the backward pass, the attention and the gradient of its logits.
//
// The same bits for any number of threads: every output is written by one pixel; the gradients of
// key and value, into which pixels scatter, are cut by channels, and each cut goes through all
// pixels in one order; that of the bias is summed over blocks of pixels of a fixed size.
#include "attention_backward.h"
#include "attention_forward.h"

namespace LDA_AQU_ISA {
namespace {

template <typename T, typename S>
void run(const Problem& p, bool is_backward) {
    Arena arena{static_cast<char*>(p.workspace)};
    if (is_backward) {
        BackwardKernel<T> kernel(p, arena);
        kernel.prepare();
        kernel.template backward<S>();
    } else {
        ForwardKernel<T> kernel(p, arena);
        kernel.prepare();
        kernel.template forward<S>();
    }
}

void run(const Problem& p, bool is_backward) {
    switch (p.output_dtype) {
        case kFloat64: return run<double, double>(p, is_backward);
        case kBFloat16: return run<float, BFloat16>(p, is_backward);
        case kFloat16: return run<float, _Float16>(p, is_backward);
        default: return run<float, float>(p, is_backward);
    }
}

template <typename T>
int64_t count_workspace(const Problem& p, bool is_backward) {
    Arena arena{nullptr};
    if (is_backward)
        BackwardKernel<T>(p, arena);
    else
        ForwardKernel<T>(p, arena);
    return arena.used;
}

}  // namespace

int64_t workspace_size(const Problem& p, bool is_backward) {
    return p.output_dtype == kFloat64 ? count_workspace<double>(p, is_backward)
                                      : count_workspace<float>(p, is_backward);
}

void forward(const Problem& p) { run(p, false); }
void backward(const Problem& p) { run(p, true); }

}  // namespace LDA_AQU_ISA
