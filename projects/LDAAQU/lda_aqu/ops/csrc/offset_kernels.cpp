// The offset network on the CPU, forward and backward. Compiled once for each instruction set; see
// attention_kernels.cpp.
#include "offset_backward.h"
#include "offset_forward.h"

namespace LDA_AQU_ISA {
namespace {

template <typename Kernel, typename S>
void run(const OffsetProblem& p) {
    Arena arena{static_cast<char*>(p.workspace)};
    Kernel(p, arena).template run<S>();
}

template <template <typename> class Kernel>
void run(const OffsetProblem& p) {
    switch (p.dtype) {
        case kFloat64: return run<Kernel<double>, double>(p);
        case kBFloat16: return run<Kernel<float>, BFloat16>(p);
        case kFloat16: return run<Kernel<float>, _Float16>(p);
        default: return run<Kernel<float>, float>(p);
    }
}

template <template <typename> class Kernel>
int64_t count_workspace(const OffsetProblem& p) {
    Arena arena{nullptr};
    if (p.dtype == kFloat64)
        Kernel<double>(p, arena);
    else
        Kernel<float>(p, arena);
    return arena.used;
}

}  // namespace

int64_t offset_workspace_size(const OffsetProblem& p, bool is_backward) {
    return is_backward ? count_workspace<OffsetBackward>(p) : count_workspace<OffsetForward>(p);
}

void predict_offsets(const OffsetProblem& p) { run<OffsetForward>(p); }
void predict_offsets_backward(const OffsetProblem& p) { run<OffsetBackward>(p); }

}  // namespace LDA_AQU_ISA
