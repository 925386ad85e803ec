// SPDX-License-Identifier: Apache-2.0
#include "cuda/pixel_contrast_launch.h"

PIPA_PIXEL_CONTRAST(1024)
PIPA_PIXEL_CONTRAST_HALF(1024)
