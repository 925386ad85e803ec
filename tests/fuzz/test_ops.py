# SPDX-License-Identifier: Apache-2.0
"""Every op under attack: right, or refused with a ValueError that names the argument."""

from tests.fuzz import contrast, draws, maps, modules


def test_pixel_contrast(fuzz):
    fuzz("pixel_contrast", contrast.pixels, contrast.check_pixel)


def test_patch_consistency(fuzz):
    fuzz("patch_consistency", contrast.patches, contrast.check_patch)


def test_upsampled_cross_entropy(fuzz):
    fuzz("upsampled_cross_entropy", maps.cross_entropies, maps.check_cross_entropy)


def test_pseudo_labels(fuzz):
    fuzz("pseudo_labels", maps.pseudo_cases, maps.check_pseudo_labels)


def test_downscale_labels(fuzz):
    fuzz("downscale_labels", maps.cell_cases, maps.check_downscale_labels)


def test_sample_anchors(fuzz):
    fuzz("sample_anchors", draws.anchor_cases, draws.check_anchors)


def test_gather_pixels(fuzz):
    fuzz("gather_pixels", draws.pixel_cases, draws.check_gather_pixels)


def test_overlap_pairs(fuzz):
    fuzz("overlap_pairs", draws.pair_cases, draws.check_overlap_pairs)


def test_feature_bank(fuzz):
    fuzz("feature_bank", modules.pushes, modules.check_bank)


def test_pixel_contrast_loss(fuzz):
    fuzz("pixel_contrast_loss", modules.pixel_losses, modules.check_pixel_loss)


def test_patch_consistency_loss(fuzz):
    fuzz("patch_consistency_loss", modules.patch_losses, modules.check_patch_loss)
