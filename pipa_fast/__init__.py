# SPDX-License-Identifier: Apache-2.0
"""Domain-adaptive semantic segmentation with pixel contrast and patch consistency."""

# First, since the extensions resolve libtorch's symbols against what torch has loaded.
import torch  # noqa: F401

__version__ = "0.1.0"
