// SPDX-License-Identifier: Apache-2.0
#include "cpu/isa.h"

#include <stdexcept>

namespace pipa {

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512_bf16:
      return "avx512_bf16";
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    case Isa::portable_bf16:
      return "portable_bf16";
    default:
      return "portable";
  }
}

bool isa_compiled(Isa isa) {
#if defined(__x86_64__)
  (void)isa;
  return true;
#else
  return isa == Isa::portable || isa == Isa::portable_bf16;
#endif
}

bool isa_available(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::avx512_bf16:
      return isa_available(Isa::avx512) && __builtin_cpu_supports("avx512bf16");
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    default:
      return true;
  }
#else
  return isa_compiled(isa);
#endif
}

Isa choose_isa(const std::string& name) {
  Isa best = Isa::portable;
  std::string names = "\"\"";
  for (Isa isa : kIsas) {
    if (name == isa_name(isa)) {
      if (!isa_available(isa))
        throw std::invalid_argument("isa \"" + name + "\" is not available on this CPU");
      return isa;
    }
    if (isa_available(isa)) best = isa;
    names += std::string(", \"") + isa_name(isa) + "\"";
  }
  if (!name.empty())
    throw std::invalid_argument("isa must be one of " + names + ", got \"" + name + "\"");
  return best;
}

}  // namespace pipa
