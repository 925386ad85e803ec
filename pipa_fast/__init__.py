# SPDX-License-Identifier: Apache-2.0
"""Domain-adaptive semantic segmentation with pixel contrast and patch consistency."""

# First, since the extensions resolve libtorch's symbols against what torch has loaded.
import torch  # noqa: F401

__version__ = "0.1.0"


def __getattr__(name: str):  # what needs models and settings is imported when it is asked for
    if name == "from_pretrained":
        from pipa_fast.pretrained import from_pretrained

        return from_pretrained
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
