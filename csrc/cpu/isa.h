// SPDX-License-Identifier: Apache-2.0
// Which instruction sets the kernels were compiled for, and which of them this CPU has.
#pragma once

#include <string>

namespace pipa {

enum class Isa { portable, avx2, avx512 };

constexpr Isa kIsas[] = {Isa::portable, Isa::avx2, Isa::avx512};

const char* isa_name(Isa isa);
bool isa_compiled(Isa isa);
bool isa_available(Isa isa);  // compiled, and the CPU and the system support it

// "" is the best available; throws std::invalid_argument for an unknown or unavailable name.
Isa choose_isa(const std::string& name);

}  // namespace pipa
