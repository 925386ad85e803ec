// SPDX-License-Identifier: Apache-2.0
#include "cuda/patch_consistency_hopper_launch.h"

PIPA_PATCH_CONSISTENCY_HOPPER(128)
