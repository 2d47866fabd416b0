// The offset network on the CPU, forward and backward. Compiled once for each instruction set; see
// ../README.md.
#include "backward.h"
#include "forward.h"

namespace offset_network::LDA_AQU_ISA {

int64_t forward_workspace_size(const Problem& p) { return workspace_size_of<Forward>(p); }
int64_t backward_workspace_size(const Problem& p) { return workspace_size_of<Backward>(p); }
void forward(const Problem& p) { compute<Forward>(p); }
void backward(const Problem& p) { compute<Backward>(p); }

}  // namespace offset_network::LDA_AQU_ISA
