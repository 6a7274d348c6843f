// Which instruction sets this machine has; the best is used until another is chosen.
#include "simd/isa.h"

#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace starcoder {

extern const Isa isa_scalar, isa_avx2, isa_avxvnni, isa_neon;
extern const Isa isa_avx512, isa_avx512_bf16_peak, isa_avx512_bf16;  // all "avx512"

namespace {

#if defined(__x86_64__)
bool has_f16c() {  // clang's __builtin_cpu_supports does not know the name
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

bool has_avx_vnni() {  // nor do all compilers this one
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 4));
}

const Isa* best_avx512() {
    if (!__builtin_cpu_supports("avx512bf16")) return &isa_avx512;
    return __builtin_cpu_is("intel") ? &isa_avx512_bf16_peak : &isa_avx512_bf16;
}
#endif

std::vector<const Isa*> detect() {
    std::vector<const Isa*> found;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vnni"))
        found.push_back(best_avx512());
    if (avx2 && has_avx_vnni()) found.push_back(&isa_avxvnni);
    if (avx2) found.push_back(&isa_avx2);
#elif defined(__aarch64__) && defined(__linux__)
    if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) found.push_back(&isa_neon);
#elif defined(__aarch64__)
    found.push_back(&isa_neon);  // every Apple silicon has the dot product
#endif
    found.push_back(&isa_scalar);
    return found;
}

const Isa*& current() {
    static const Isa* isa = available_isas().front();
    return isa;
}

bool is_amd() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_is("amd");
#else
    return false;
#endif
}

}  // namespace

const bool hardware_follows_streams = is_amd();

std::span<const Isa* const> available_isas() {
    static const std::vector<const Isa*> found = detect();
    return found;
}

const Isa& isa() { return *current(); }

bool use_isa(std::string_view name) {
    for (const Isa* isa : available_isas())
        if (name == isa->name) {
            current() = isa;
            return true;
        }
    return false;
}

}  // namespace starcoder
