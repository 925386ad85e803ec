// SPDX-License-Identifier: Apache-2.0
// What the host asks of the CUDA runtime.
#pragma once

namespace pipa::cuda {

// Why there is no device, or null.
const char* runtime_why_not();

// CUDA versions, 13000 for 13.0: of the runtime that is linked in, and the newest that the driver
// here knows, 0 where there is none.
int runtime_version();
int driver_version();

// Whether units for sm_90a are there.
#if defined(PIPA_FAST_HOPPER)
constexpr bool kHopper = true;
#else
constexpr bool kHopper = false;
#endif
// Whether the current device runs them. The environment's PIPA_FAST_HOPPER=0 says not to.
bool use_hopper();

}  // namespace pipa::cuda
