// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace pipa::cuda {

// Why this process can start no kernel, as the CUDA runtime puts it; null where it can.
const char* runtime_why_not();

}  // namespace pipa::cuda
