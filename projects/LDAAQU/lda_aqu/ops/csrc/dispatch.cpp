// The C interface: chooses, when it is loaded, the kernels of the widest instruction set of this CPU.
#include <cstring>

#include "norm_problem.h"
#include "offset_problem.h"
#include "attention_problem.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#define DECLARE(isa)                                            \
    namespace isa {                                             \
    int64_t workspace_size(const Problem&, bool);               \
    void forward(const Problem&);                               \
    void backward(const Problem&);                              \
    int64_t offset_workspace_size(const OffsetProblem&, bool);  \
    void predict_offsets(const OffsetProblem&);                 \
    void predict_offsets_backward(const OffsetProblem&);        \
    void standardize(const NormProblem&);                       \
    void standardize_backward(const NormProblem&);              \
    }

DECLARE(generic)
#ifdef LDA_AQU_X86
DECLARE(avx2)
DECLARE(avx512)
#endif

namespace {

struct Kernels {
    const char* name;
    int64_t (*workspace_size)(const Problem&, bool);
    void (*forward)(const Problem&);
    void (*backward)(const Problem&);
    int64_t (*offset_workspace_size)(const OffsetProblem&, bool);
    void (*predict_offsets)(const OffsetProblem&);
    void (*predict_offsets_backward)(const OffsetProblem&);
    void (*standardize)(const NormProblem&);
    void (*standardize_backward)(const NormProblem&);
};

#define KERNELS(isa)                                                                    \
    {                                                                                   \
        #isa, isa::workspace_size, isa::forward, isa::backward,                         \
            isa::offset_workspace_size, isa::predict_offsets,                           \
            isa::predict_offsets_backward, isa::standardize, isa::standardize_backward, \
    }

constexpr Kernels kernels[] = {
#ifdef LDA_AQU_X86
    KERNELS(avx512),
    KERNELS(avx2),
#endif
    KERNELS(generic),
};

bool runs_here([[maybe_unused]] const char* name) {
#ifdef LDA_AQU_X86
    __builtin_cpu_init();
    if (!strcmp(name, "generic")) return true;
    if (!__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c")) return false;
    if (!strcmp(name, "avx2")) return __builtin_cpu_supports("avx2");
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
    return true;
#endif
}

const Kernels* widest() {
    const Kernels* candidate = kernels;
    while (!runs_here(candidate->name)) ++candidate;
    return candidate;
}

const Kernels* chosen = widest();

}  // namespace

extern "C" {

// Name of the instruction set in use.
const char* lda_aqu_instruction_set() { return chosen->name; }

// Use the kernels of that name from now on: 0, or -1 if there are none or the CPU cannot run them.
int lda_aqu_use_instruction_set(const char* name) {
    for (const Kernels& candidate : kernels)
        if (strcmp(candidate.name, name) == 0 && runs_here(candidate.name)) {
            chosen = &candidate;
            return 0;
        }
    return -1;
}

// Asks for huge pages in memory that is not yet written.
void lda_aqu_advise_huge_pages(void* memory, int64_t size) {
#ifdef MADV_HUGEPAGE
    constexpr uintptr_t page = 2 << 20;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + size) / page * page;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)memory, (void)size;
#endif
}

// Bytes of workspace that a call needs.
int64_t lda_aqu_workspace_size(const Problem* problem, int is_backward) {
    return chosen->workspace_size(*problem, is_backward != 0);
}

void lda_aqu_forward(const Problem* problem) { chosen->forward(*problem); }

void lda_aqu_backward(const Problem* problem) { chosen->backward(*problem); }

int64_t lda_aqu_offset_workspace_size(const OffsetProblem* problem, int is_backward) {
    return chosen->offset_workspace_size(*problem, is_backward != 0);
}

void lda_aqu_predict_offsets(const OffsetProblem* problem) { chosen->predict_offsets(*problem); }

void lda_aqu_predict_offsets_backward(const OffsetProblem* problem) {
    chosen->predict_offsets_backward(*problem);
}

void lda_aqu_standardize(const NormProblem* problem) { chosen->standardize(*problem); }

void lda_aqu_standardize_backward(const NormProblem* problem) {
    chosen->standardize_backward(*problem);
}
}
