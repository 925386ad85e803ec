# SPDX-License-Identifier: Apache-2.0
"""Photometric augmentation on the device: colour jitter, grey and blur, drawn image by image.

Every draw is a function of (seed, stream, iteration, image), so that it depends neither on the
other images of the batch nor on the rank. Nothing is read back to the host.
"""

import math
from dataclasses import dataclass

import torch
from kornia.color import rgb_to_grayscale
from kornia.enhance import (
    adjust_brightness,
    adjust_brightness_accumulative,
    adjust_contrast,
    adjust_contrast_with_mean_subtraction,
    adjust_hue,
    adjust_saturation,
    adjust_saturation_with_gray_subtraction,
)
from kornia.filters import filter2d_separable
from kornia.filters.kernels import get_gaussian_kernel1d
from torch import Tensor

from pipa_fast.data.random import uniform


@dataclass(kw_only=True, slots=True, frozen=True)
class Augmentation:
    """How strongly, and with what probability."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    """Largest change, hue in circles."""
    jitter: float
    grey: float
    blur: float
    """Probabilities, each image for itself."""
    about_grey: bool = False
    """How colours change. True, as in torchvision: brightness multiplies, contrast spreads about
    the image's mean grey, saturation about each pixel's. False, as in kornia: brightness is added,
    contrast multiplies, saturation is HSV's."""
    sigma: tuple[float, float] = (0.15, 1.15)
    """Standard deviation of the blur [pixels], uniform."""
    taps: int = 11
    """Width of the blur [pixels]: 2 x 4.3 standard deviations at sigma 1.15."""


STRONG = Augmentation(
    brightness=0.2, contrast=0.2, saturation=0.2, hue=0.2, jitter=0.8, grey=0.0, blur=0.5
)
"""Of mixed images (DAFormer's `dacs_transforms.py`)."""
VIEWS = Augmentation(
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    jitter=0.8,
    grey=0.2,
    blur=0.5,
    about_grey=True,
    sigma=(1.1, 1.1),
    taps=5,
)
"""Of overlapping crops (PiPa's `dataloaders/city.py`, after Lai et al., CVPR 2021). Its blur is
OpenCV's of 5 taps and no given sigma, which weighs them 1, 4, 6, 4, 1."""


def strong_augment(
    images: Tensor,  # [B, 3, H, W] float RGB in [0, 1]
    *,
    seed: int,
    iteration: Tensor,  # [] int64
    index: Tensor,  # [B] int64, each image's own number in the step
    stream: str = "strong",
    augmentation: Augmentation = STRONG,
) -> Tensor:  # [B, 3, H, W] in [0, 1]
    """Change colours and sharpness of every image by its own draw."""
    if len(images) == 0:
        return images
    a = augmentation
    draw = uniform(seed, stream, iteration, index, 8)
    change = 2 * draw - 1  # [B, 8] in [-1, 1)
    brightness, hue = a.brightness * change[:, 0], 2 * math.pi * a.hue * change[:, 3]
    contrast, saturation = 1 + a.contrast * change[:, 1], 1 + a.saturation * change[:, 2]
    if a.about_grey:
        jittered = adjust_brightness_accumulative(images, 1 + brightness)
        jittered = adjust_contrast_with_mean_subtraction(jittered, contrast)
        jittered = adjust_saturation_with_gray_subtraction(jittered, saturation)
    else:
        jittered = adjust_brightness(images, brightness)
        jittered = adjust_contrast(jittered, contrast)
        jittered = adjust_saturation(jittered, saturation)
    jittered = adjust_hue(jittered, hue)
    result = torch.where(_chosen(draw[:, 4], a.jitter), jittered, images)
    if a.grey > 0:
        grey = rgb_to_grayscale(result)
        result = torch.where(_chosen(draw[:, 5], a.grey), grey, result)
    if a.blur > 0:
        sigma = a.sigma[0] + (a.sigma[1] - a.sigma[0]) * draw[:, 6]
        blurred = gaussian_blur(result, sigma, a.taps)
        result = torch.where(_chosen(draw[:, 7], a.blur), blurred, result)
    return result


def distort(
    images: Tensor,  # [B, 3, H, W] float RGB in [0, 1]
    *,
    seed: int,
    iteration: Tensor,  # [] int64
    index: Tensor,  # [B] int64, each image's own number in the step
) -> Tensor:  # [B, 3, H, W] in [0, 1]
    """Change brightness, contrast, saturation and hue, each of half of the images.

    Numbers and order are those of mmsegmentation's `PhotoMetricDistortion`, which rounds to bytes
    in between, and hues to 2 degrees.
    """
    draw = uniform(seed, "distort", iteration, index, 9)
    change = (2 * draw[:, :4] - 1) * (draw[:, 4:8] < 0.5)  # [B, 4] in [-1, 1)
    contrast = 1 + 0.5 * change[:, 1]
    early = draw[:, 8] < 0.5
    changed = adjust_brightness(images, 32 / 255 * change[:, 0])
    changed = adjust_contrast(changed, torch.where(early, contrast, 1))
    changed = adjust_saturation(changed, 1 + 0.5 * change[:, 2])
    changed = adjust_hue(changed, 0.1 * 2 * math.pi * change[:, 3])
    return adjust_contrast(changed, torch.where(early, 1, contrast))


def gaussian_blur(
    images: Tensor,  # [B, 3, H, W]
    sigma: Tensor,  # [B], standard deviations [pixels]
    taps: int,  # width of the kernel [pixels], odd
) -> Tensor:  # [B, 3, H, W]
    """Blur every image by its own standard deviation, by rows and then by columns."""
    kernel = get_gaussian_kernel1d(taps, sigma[:, None].to(images.dtype))
    return filter2d_separable(images, kernel, kernel)


def _chosen(draw: Tensor, probability: float) -> Tensor:
    return (draw < probability)[:, None, None, None]
