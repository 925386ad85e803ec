# SPDX-License-Identifier: Apache-2.0
"""How a network arranges pixels by class: features, their principal axes, and one number."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipa_fast.checks import require
from pipa_fast.data.datasets import Dataset
from pipa_fast.data.labels import CLASSES
from pipa_fast.evaluation.inference import at_size, evaluating, padded_for, to_batch
from pipa_fast.evaluation.panels import spread_indices
from pipa_fast.models import SegmentationNetwork


class Embeddings(NamedTuple):
    """Features of sampled pixels."""

    features: Tensor  # [N, D] float32, unit rows
    labels: Tensor  # [N] int64 train ids


class Projection(NamedTuple):
    """Embeddings as seen along their two principal axes."""

    points: Tensor  # [N, 2]
    labels: Tensor  # [N] int64 train ids
    explained: float  # share of the variance that the two axes hold
    nearest_centre: float  # share of pixels whose nearest class mean, in all of D, is their own


def classifier_of(network: nn.Module) -> nn.Module:
    """Return the last convolution or linear layer that yields a channel for each of CLASSES.

    Raises:
        ValueError: there is none.
    """
    found = None
    for module in network.modules():
        outputs = getattr(module, "out_channels", getattr(module, "out_features", None))
        if isinstance(module, nn.Conv2d | nn.Linear) and outputs == len(CLASSES):
            found = module
    if found is None:
        raise ValueError(
            f"network must have a layer with {len(CLASSES)} outputs; "
            f"{type(network).__name__} has none"
        )
    return found


def pixel_features(network: nn.Module, images: Tensor) -> Tensor:
    """Return what the classifier reads, [B, D, h, w], for images [B, 3, H, W] in [0, 1].

    Every network has these features, with projection heads or without, so that any two compare.
    HRDA's are its context's, which it has of the whole image.
    """
    if isinstance(network, SegmentationNetwork):
        return network.fused(images)
    seen: list[Tensor] = []
    classifier = classifier_of(network)
    hook = classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        network(images)
    finally:
        hook.remove()
    return seen[-1]


def collect_embeddings(
    network: nn.Module,
    dataset: Dataset,
    *,
    num_images: int = 24,
    per_class: int = 120,
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
    device: torch.device | str = "cpu",
) -> Embeddings:
    """Sample pixels of every scored class from evenly spread images of `dataset`.

    Each image gives up to the same number of pixels of each class, `per_class` in total where the
    class is frequent. The pixels depend on labels and `seed` alone: two networks of one stride are
    seen at the same places. Labels are taken nearest to the features' cells. Networks see images at
    `image_size`, as `at_size` has it.
    """
    require(num_images > 0, "num_images", num_images, "a positive count")
    require(per_class > 0, "per_class", per_class, "a positive count")
    features, labels = [], []
    indices = spread_indices(len(dataset), num_images)
    quota = -(-per_class // len(indices))
    classes = list(dataset.eval_classes)
    with evaluating(network):
        for index in indices:
            sample = dataset[index]
            images = at_size(to_batch([sample.image], device), image_size)
            padded = padded_for(network, images)
            map_ = pixel_features(network, padded)[0].float().cpu()
            # only the cells that show the image
            sides = zip(map_.shape[1:], images.shape[2:], padded.shape[2:], strict=True)
            rows, columns = (-(-cells * own // whole) for cells, own, whole in sides)
            map_ = map_[:, :rows, :columns]
            truth = torch.tensor(sample.label, dtype=torch.float32)[None, None]
            truth = F.interpolate(truth, size=map_.shape[1:], mode="nearest-exact")[0, 0].long()
            rng = np.random.default_rng([seed, index])
            cells = _draw(truth.flatten().numpy(), classes, quota, rng)
            features.append(map_.flatten(1)[:, cells].T)
            labels.append(truth.flatten()[cells])
    return Embeddings(F.normalize(torch.cat(features)), torch.cat(labels))


def _draw(
    labels: np.ndarray, classes: Sequence[int], quota: int, rng: np.random.Generator
) -> Tensor:
    """Return up to `quota` positions of each class among `labels` [N]."""
    drawn = [rng.permutation(np.flatnonzero(labels == c))[:quota] for c in classes]
    return torch.from_numpy(np.concatenate(drawn).astype(np.int64))


def project(embeddings: Embeddings) -> Projection:
    """Return the principal-component view of `embeddings` and how well classes are apart in it.

    Raises:
        ValueError: fewer than three pixels.
    """
    x, y = embeddings.features.double(), embeddings.labels
    require(len(x) >= 3, "embeddings", f"{len(x)} pixels", "at least three pixels")
    centred = x - x.mean(0)
    _, values, axes = torch.linalg.svd(centred, full_matrices=False)
    # An axis has no sign of its own; the largest loading is made positive, so pictures repeat.
    axes = axes[:2]
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    points = centred @ (axes * largest.sign()).T
    variance = values.square()
    classes, y_index = torch.unique(y, return_inverse=True)
    sums = torch.zeros(len(classes), x.shape[1], dtype=x.dtype).index_add_(0, y_index, x)
    centres = sums / torch.bincount(y_index)[:, None]
    nearest = torch.cdist(x, centres).argmin(1)
    return Projection(
        points.float(),
        y,
        float(variance[:2].sum() / variance.sum().clamp(min=1e-30)),
        float((nearest == y_index).double().mean()),
    )
