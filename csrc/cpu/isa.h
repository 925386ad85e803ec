// SPDX-License-Identifier: Apache-2.0
// Which instruction sets the kernels were compiled for, and which of them this CPU has.
#pragma once

#include <string>

namespace pipa {

// The best comes last. The two with bf16 multiply features that are bfloat16 as they are; others as
// the set without. portable_bf16 does so without the instruction: it shows on any CPU that all the
// rest of avx512_bf16 is right, and is never the best.
enum class Isa { portable_bf16, portable, avx2, avx512, avx512_bf16 };

constexpr Isa kIsas[] = {Isa::portable_bf16, Isa::portable, Isa::avx2, Isa::avx512,
                         Isa::avx512_bf16};

const char* isa_name(Isa isa);
bool isa_compiled(Isa isa);
bool isa_available(Isa isa);  // compiled, and the CPU and the system support it

// "" is the best available; throws std::invalid_argument for an unknown or unavailable name.
Isa choose_isa(const std::string& name);

}  // namespace pipa
