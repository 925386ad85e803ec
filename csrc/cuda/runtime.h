// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace pipa::cuda {

// Why this process can start no kernel, as the CUDA runtime puts it; null where it can.
const char* runtime_why_not();

// CUDA versions, 13000 for 13.0: of the runtime that is linked in, and the newest that the driver
// here knows, 0 where there is none.
int runtime_version();
int driver_version();

}  // namespace pipa::cuda
