// SPDX-License-Identifier: Apache-2.0
#include "cuda/pixel_contrast_hopper_launch.h"

PIPA_PIXEL_CONTRAST_HOPPER(128)
