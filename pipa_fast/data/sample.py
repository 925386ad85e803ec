# SPDX-License-Identifier: Apache-2.0
"""One labelled image, as every dataset here returns it."""

from typing import NamedTuple

import numpy as np


class Sample(NamedTuple):
    """An image and its label."""

    image: np.ndarray
    """[H, W, 3] uint8, RGB."""
    label: np.ndarray
    """[H, W] uint8, train ids; 255 where there is none."""
    name: str
