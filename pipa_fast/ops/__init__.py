# SPDX-License-Identifier: Apache-2.0
"""The ops: one file each, with its checks, schema, fake kernel, autograd and table of backends."""

from pipa_fast.ops.backends import backends, backends_explained, has_triton
from pipa_fast.ops.downscale_labels import downscale_labels
from pipa_fast.ops.gather_pixels import gather_pixels
from pipa_fast.ops.overlap_pairs import overlap_pairs
from pipa_fast.ops.patch_consistency import patch_consistency
from pipa_fast.ops.pixel_contrast import pixel_contrast
from pipa_fast.ops.pseudo_labels import pseudo_labels
from pipa_fast.ops.sample_anchors import sample_anchors
from pipa_fast.ops.upsampled_cross_entropy import upsampled_cross_entropy

__all__ = [
    "backends",
    "backends_explained",
    "downscale_labels",
    "gather_pixels",
    "has_triton",
    "overlap_pairs",
    "patch_consistency",
    "pixel_contrast",
    "pseudo_labels",
    "sample_anchors",
    "upsampled_cross_entropy",
]
