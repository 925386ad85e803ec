// SPDX-License-Identifier: Apache-2.0
#include "cuda/patch_consistency_launch.h"

PIPA_PATCH_CONSISTENCY(512)
PIPA_PATCH_CONSISTENCY_HALF(512)
