// The C interface: chooses, once, the kernels of the widest instruction set that this CPU has.
#include "problem.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#define DECLARE(isa)                                \
    namespace isa {                                 \
    int64_t workspace_size(const Problem&, bool);   \
    void forward(const Problem&);                   \
    void backward(const Problem&);                  \
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
};

constexpr Kernels kernels[] = {
#ifdef LDA_AQU_X86
    {"avx512", avx512::workspace_size, avx512::forward, avx512::backward},
    {"avx2", avx2::workspace_size, avx2::forward, avx2::backward},
#endif
    {"generic", generic::workspace_size, generic::forward, generic::backward},
};

bool runs_here(const char* name) {
#ifdef LDA_AQU_X86
    if (name[3] == '5')
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("fma");
    if (name[3] == '2') return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return true;
}

const Kernels* chosen = nullptr;

const Kernels& choice() {
    if (!chosen)
        for (const Kernels& candidate : kernels)
            if (runs_here(candidate.name)) {
                chosen = &candidate;
                break;
            }
    return *chosen;
}

}  // namespace

extern "C" {

// Name of the instruction set in use.
const char* lda_aqu_instruction_set() { return choice().name; }

// Use the kernels of that name from now on: 0, or -1 if there are none or the CPU cannot run them.
int lda_aqu_use_instruction_set(const char* name) {
    for (const Kernels& candidate : kernels) {
        const char *a = candidate.name, *b = name;
        while (*a && *a == *b) ++a, ++b;
        if (*a == *b && runs_here(candidate.name)) {
            chosen = &candidate;
            return 0;
        }
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
    return choice().workspace_size(*problem, is_backward != 0);
}

void lda_aqu_forward(const Problem* problem) { choice().forward(*problem); }

void lda_aqu_backward(const Problem* problem) { choice().backward(*problem); }
}
