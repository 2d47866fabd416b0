// The C interface: when it is loaded, it chooses the kernels of this CPU's widest instruction set.
#include <cstring>

#include "attention/problem.h"
#include "offset_network/problem.h"
#include "projection/problem.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

// Every function of every operator, as KERNEL(isa, result, operator, function). It is called with
// the operator's Problem, from C as lda_aqu_<operator>_<function>.
#define FOR_EACH_KERNEL(KERNEL, isa)                              \
    KERNEL(isa, int64_t, attention, forward_workspace_size)       \
    KERNEL(isa, int64_t, attention, backward_workspace_size)      \
    KERNEL(isa, void, attention, forward)                         \
    KERNEL(isa, void, attention, backward)                        \
    KERNEL(isa, int64_t, offset_network, forward_workspace_size)  \
    KERNEL(isa, int64_t, offset_network, backward_workspace_size) \
    KERNEL(isa, void, offset_network, forward)                    \
    KERNEL(isa, void, offset_network, backward)                   \
    KERNEL(isa, void, projection, standardize)                    \
    KERNEL(isa, void, projection, standardize_backward)

#define DECLARE(isa, result, op, function) \
    namespace op::isa { result function(const Problem&); }
FOR_EACH_KERNEL(DECLARE, generic)
#ifdef LDA_AQU_X86
FOR_EACH_KERNEL(DECLARE, avx2)
FOR_EACH_KERNEL(DECLARE, avx512)
#endif

namespace {

#define MEMBER(isa, result, op, function) result (*op##_##function)(const op::Problem&);
struct Kernels {
    const char* name;
    FOR_EACH_KERNEL(MEMBER, )
};

#define ADDRESS(isa, result, op, function) op::isa::function,
constexpr Kernels kernels[] = {
#ifdef LDA_AQU_X86
    {"avx512", FOR_EACH_KERNEL(ADDRESS, avx512)},
    {"avx2", FOR_EACH_KERNEL(ADDRESS, avx2)},
#endif
    {"generic", FOR_EACH_KERNEL(ADDRESS, generic)},
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

#define EXPORT(isa, result, op, function)                          \
    result lda_aqu_##op##_##function(const op::Problem* problem) { \
        return chosen->op##_##function(*problem);                  \
    }
FOR_EACH_KERNEL(EXPORT, )

// Hash of the sources that the library was built from (see setup.py).
const char* lda_aqu_sources() { return LDA_AQU_SOURCES; }

// Bytes of the Problem of an operator, or -1 if there is none of that name.
int64_t lda_aqu_problem_size(const char* name) {
#define SIZE(isa, result, op, function) \
    if (!strcmp(name, #op)) return sizeof(op::Problem);
    FOR_EACH_KERNEL(SIZE, )
    return -1;
}

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
}
