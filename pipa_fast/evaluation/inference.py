# SPDX-License-Identifier: Apache-2.0
"""Whole-image and sliding-window prediction, and the score of a network on a dataset."""

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pipa_fast.checks import require
from pipa_fast.data.datasets import Dataset, Sample
from pipa_fast.data.files import fitted
from pipa_fast.data.labels import CLASSES
from pipa_fast.evaluation.metrics import ConfusionMatrix
from pipa_fast.models.window import starts

Item = TypeVar("Item")
Read = TypeVar("Read")

PIXELS = 1024 * 2048
"""Of an image of Cityscapes, which batches are meant for."""

AHEAD = 4
"""Images that are read while a network is at earlier ones."""


@dataclass(kw_only=True, slots=True, frozen=True)
class SlidingWindow:
    """Overlapping crops with averaged logits: how networks trained on crops see large images."""

    crop: tuple[int, int]
    """Height and width [pixels]."""
    stride: tuple[int, int]
    """Distance between neighbouring crops [pixels]; the last one is moved inwards to fit."""
    batch: int = 4
    """Crops in one forward pass at most, over all images. Memory grows with it; logits stay."""

    @classmethod
    def of(
        cls, crop: tuple[int, int], stride: tuple[int, int] | None = None, **settings: int
    ) -> "SlidingWindow":
        """Return windows of `crop`, two thirds of it apart by default."""
        default = (max(1, 2 * crop[0] // 3), max(1, 2 * crop[1] // 3))
        return cls(crop=crop, stride=stride or default, **settings)

    def __post_init__(self) -> None:
        require(self.batch > 0, "window_batch", self.batch, "a positive count")
        for axis in range(2):
            require(self.crop[axis] > 0, "crop", self.crop, "two positive sizes")
            require(
                0 < self.stride[axis] <= self.crop[axis],
                "stride",
                self.stride,
                f"positive and at most the crop {self.crop}, so that no pixel is left out",
            )


class EvalResult(NamedTuple):
    """A network's score on a dataset."""

    miou: float  # percent, over the classes the benchmark scores
    iou: dict[str, float]  # percent by class name; classes that occur nowhere are absent
    confusion: ConfusionMatrix

    def summary(self) -> dict[str, object]:
        """Return what results.json and history.jsonl hold of the score."""
        return {"miou": round(self.miou, 4), "iou": {k: round(v, 4) for k, v in self.iou.items()}}


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put `network` in eval mode without gradients; afterwards every submodule is as before."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def to_batch(images: Sequence[np.ndarray], device: torch.device | str = "cpu") -> Tensor:
    """Stack uint8 images [H, W, 3] into float32 [B, 3, H, W] in [0, 1] on `device`."""
    stacked = torch.from_numpy(np.stack(images)).to(device)
    return stacked.permute(0, 3, 1, 2).float().div_(255)


def at_size(images: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Return images resized to (height, width), bilinearly with antialiasing; None leaves them.

    They keep their proportions, as `data.files.fitted` says: a dataset that a recipe was not made
    for has others.
    """
    fit = fitted(images.shape[2:], size)
    if fit == images.shape[2:]:
        return images
    return F.interpolate(images, fit, mode="bilinear", antialias=True)


def predict_logits(
    network: nn.Module,
    images: Tensor,  # [B, 3, H, W] float32 in [0, 1]
    *,
    size: tuple[int, int] | None = None,
    image_size: tuple[int, int] | None = None,
    window: SlidingWindow | None = None,
    flip: bool = False,
) -> Tensor:
    """Return float32 logits [B, K, *size] for images of any size.

    `size` is the labels' (height, width), the images' own by default. The network sees the images
    at `image_size`, as `at_size` has it. With a `window` that is smaller than that, logits are
    computed per crop and averaged where crops overlap.

    With `flip` the images are also predicted mirrored, left for right. As in mmsegmentation, the
    class probabilities of both are averaged, not the logits; what is returned is the logarithm of
    that average, whose softmax is the average itself.
    """
    require(images.dim() == 4, "images", tuple(images.shape), "of shape [B, 3, H, W]")
    size = size or (images.shape[2], images.shape[3])
    images = at_size(images, image_size)
    logits = _predict(network, images, size, window)
    if not flip:
        return logits
    mirrored = _predict(network, images.flip(3), size, window).flip(3)
    # log((p + q) / 2) without leaving logarithms: a probability that underflows stays finite
    return torch.logaddexp(logits.log_softmax(1), mirrored.log_softmax(1)) - math.log(2)


def _predict(
    network: nn.Module, images: Tensor, size: tuple[int, int], window: SlidingWindow | None
) -> Tensor:
    """Predict at once, or in windows where they are smaller than the images."""
    shape = (images.shape[2], images.shape[3])
    if window is None or (window.crop[0] >= shape[0] and window.crop[1] >= shape[1]):
        return _whole(network, images, size)
    return _resize(_sliding(network, images, window), size)


def padded_for(network: nn.Module, images: Tensor) -> Tensor:
    """Return images whose last row and column are repeated up to multiples of the network's stride.

    A side that holds no cell of the encoder's coarsest map, which a MiT cannot see, becomes one.
    """
    stride, least = int(getattr(network, "stride", 1)), int(getattr(network, "least_side", 1))
    below, right = (max(-side % stride, least - side) for side in images.shape[2:])
    if not (below or right):
        return images
    return F.pad(images, (0, right, 0, below), mode="replicate")


def _whole(network: nn.Module, images: Tensor, size: tuple[int, int]) -> Tensor:
    """Predict at once, as mmsegmentation: logits are brought to the images' size, then to `size`.

    Images are padded to what the network takes, and their logits cut back.
    """
    height, width = images.shape[2:]
    padded = padded_for(network, images)
    logits = _resize(_logits(network, padded), (padded.shape[2], padded.shape[3]))
    return _resize(logits[:, :, :height, :width], size)


def _sliding(network: nn.Module, images: Tensor, window: SlidingWindow) -> Tensor:
    """Average the logits of overlapping crops, at the images' size."""
    number, _, height, width = images.shape
    tall, wide = min(window.crop[0], height), min(window.crop[1], width)
    # An image's crops are added up in the same order whatever the batch.
    places = [
        (image, slice(top, top + tall), slice(left, left + wide))
        for image in range(number)
        for top in starts(height, tall, window.stride[0])
        for left in starts(width, wide, window.stride[1])
    ]
    total, count = None, images.new_zeros(number, 1, height, width)
    for first in range(0, len(places), window.batch):
        chosen = places[first : first + window.batch]
        crops = torch.stack([images[image, :, rows, columns] for image, rows, columns in chosen])
        logits = _whole(network, crops, (tall, wide))
        if total is None:
            total = logits.new_zeros(number, logits.shape[1], height, width)
        for (image, rows, columns), part in zip(chosen, logits, strict=True):
            total[image, :, rows, columns] += part
            count[image, :, rows, columns] += 1
    assert total is not None  # an image has at least one pixel
    return total.div_(count)


def _logits(network: nn.Module, images: Tensor) -> Tensor:
    """Return float32 logits at the network's stride; a teacher returns them bare."""
    outputs = network(images)
    return (outputs if isinstance(outputs, Tensor) else outputs.logits).float()


def _resize(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize bilinearly, corners not aligned."""
    if logits.shape[2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def evaluate(
    network: nn.Module,
    dataset: Dataset,
    *,
    batch_size: int = 4,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    window: SlidingWindow | None = None,
    flip: bool = False,
    image_size: tuple[int, int] | None = None,
    classes: Sequence[int] | None = None,
    names: Sequence[str] = CLASSES,
    shard: bool = True,
    group: dist.ProcessGroup | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> EvalResult:
    """Score `network` on `dataset` at the labels' own resolution.

    Where torch.distributed is up, rank r of n takes the images r, r + n, ... and the counts are
    added up, so that every rank returns the same result and all of them must call; with
    `shard=False` the calling process does everything by itself. `dtype` is autocast's (None: no
    autocast); `window`, `flip` and `image_size` are those of `predict_logits`. `classes` are the
    train ids to score, the dataset's by default; `names` are those of all train ids. The network
    must be the bare module, not its DDP wrapper, and is left in its mode. `progress` is told how
    many images of its own this rank has done, after each batch.

    Raises:
        ValueError: an empty dataset, or a label that is no class id.
    """
    require(len(dataset) > 0, "dataset", "an empty dataset", "at least one image")
    require(batch_size > 0, "batch_size", batch_size, "a positive count")
    sharded = shard and dist.is_available() and dist.is_initialized()
    rank, world = (dist.get_rank(group), dist.get_world_size(group)) if sharded else (0, 1)
    confusion = ConfusionMatrix(len(names), device=device)
    kind, done = torch.device(device).type, 0
    with evaluating(network), torch.autocast(kind, dtype=dtype, enabled=dtype is not None):
        for samples in _batches(dataset, range(rank, len(dataset), world), batch_size):
            images = to_batch([sample.image for sample in samples], device)
            truth = torch.from_numpy(np.stack([sample.label for sample in samples])).to(device)
            size = (truth.shape[1], truth.shape[2])
            # no name for the logits, which would keep them beside those of the next batch
            predicted = predict_logits(
                network, images, size=size, image_size=image_size, window=window, flip=flip
            ).argmax(1)
            confusion.update(predicted, truth)
            done += len(samples)
            progress(done)
    if sharded:
        confusion.all_reduce(group)
    return result_of(confusion, tuple(classes or dataset.eval_classes), names)


def result_of(
    confusion: ConfusionMatrix, classes: tuple[int, ...], names: Sequence[str]
) -> EvalResult:
    """Return the score over the train ids `classes` in percent."""
    iou = confusion.iou().cpu()
    named = {names[c]: 100 * float(iou[c]) for c in classes if not torch.isnan(iou[c])}
    return EvalResult(100 * confusion.miou(classes), named, confusion)


def _batches(dataset: Dataset, indices: Iterable[int], batch_size: int) -> Iterator[list[Sample]]:
    """Yield samples in order, at most `batch_size` at a time and of one size each.

    A batch of larger images than PIXELS holds no more pixels than one of `batch_size` such images,
    or a single image: logits at the labels' size are what takes memory.
    """
    batch: list[Sample] = []
    for sample in read_ahead(dataset.__getitem__, indices):
        shapes = (sample.image.shape, sample.label.shape)
        same = not batch or shapes == (batch[0].image.shape, batch[0].label.shape)
        most = min(batch_size, batch_size * PIXELS // sample.label.size)
        if batch and (len(batch) >= most or not same):
            yield batch
            batch = []
        batch.append(sample)
    if batch:
        yield batch


def read_ahead(read: Callable[[Item], Read], items: Iterable[Item]) -> Iterator[Read]:
    """Yield what `read` makes of each item, in order; the next AHEAD are read meanwhile.

    By threads, since decoding a PNG or JPEG file lets go of the interpreter.
    """
    waiting: deque[Future[Read]] = deque()
    with ThreadPoolExecutor(AHEAD) as pool:
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
