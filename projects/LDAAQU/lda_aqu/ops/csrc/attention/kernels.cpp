// Local deformable attention on the CPU, forward and backward. Compiled once for each instruction
// set; see ../README.md.
//
// One strip of output pixels at a time. Where its taps are and what their corners weigh is computed
// in vectors over the pixels; what is read there, in vectors over the channels: rows of key and
// value, copied so that those of a group lie together, with a border of zeros that taps outside the
// map read. Nothing that grows with k² is kept for the whole map but, in the backward pass, the
// attention and the gradient of its logits.
//
// The same bits for any number of threads: every output is written by one pixel; the gradients of
// key and value, into which pixels scatter, are cut by channels, and each cut goes through all
// pixels in one order; that of the bias is summed over blocks of pixels of a fixed size.
#include "backward.h"
#include "forward.h"

namespace attention::LDA_AQU_ISA {

int64_t forward_workspace_size(const Problem& p) { return workspace_size_of<Forward>(p); }
int64_t backward_workspace_size(const Problem& p) { return workspace_size_of<Backward>(p); }
void forward(const Problem& p) { compute<Forward>(p); }
void backward(const Problem& p) { compute<Backward>(p); }

}  // namespace attention::LDA_AQU_ISA
