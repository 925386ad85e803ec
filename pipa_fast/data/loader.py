# SPDX-License-Identifier: Apache-2.0
"""The training set: source and target scenes to batches, each a function of the seed and its slot.

A step has world_size * batch_size slots; slot i of iteration k is the same images and crops on any
rank, in any worker process, and after a resume. Nothing of it needs saving.
"""

import functools
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pipa_fast.checks import require
from pipa_fast.data.batch import Batch
from pipa_fast.data.crops import crop_pair, random_box, source_box
from pipa_fast.data.datasets import Dataset as Scenes
from pipa_fast.data.datasets import build_dataset, require_dataset, require_root
from pipa_fast.data.files import Box, fitted, resize_label, resized_part
from pipa_fast.data.own import OWN, require_classes
from pipa_fast.data.random import generator
from pipa_fast.data.rare_classes import RareClassSampler
from pipa_fast.data.statistics import known_counts
from pipa_fast.trace import trace_range, traced


@dataclass(kw_only=True)
class DataConfig:
    """Which images a run learns from, and how they are cut. The defaults are for `streets`."""

    source: str = "streets_synthetic"
    target: str = "streets_real"
    """Names of datasets, see `data.build_dataset`."""
    source_root: str | None = None
    target_root: str | None = None
    """Their folders; null for `streets`, which needs none."""
    classes: tuple[str, ...] | None = None
    """Names of the classes that labels number from 0, where source and target are `own`; null:
    Cityscapes' 19. `model.num_classes` is how many."""
    source_size: tuple[int, int] | None = None
    target_size: tuple[int, int] | None = None
    """Height and width that images are resized to before crops are cut [pixels]; null: as they are.
    They keep their proportions (`data.files.fitted`), and stay below one of the two where those are
    others. The overlapping crops are cut from target images as they are."""
    batch_size: int = 4
    """Images per rank and domain; a step sees world_size times as many."""
    micro_batch: int | None = None
    """Images that go through a rank's network at once; the gradient stays the whole batch's. Less
    memory, for about a third more time; null: all of them."""
    crop: tuple[int, int] = (64, 128)
    """Height and width of source and target crops [pixels]."""
    max_class_share: float = 0.75
    """A source crop in which one class takes this share is drawn again; 1 takes all crops."""
    rare_class: bool = True
    """Draw source images by their rare classes, not uniformly."""
    rare_class_temperature: float = 0.01
    min_pixels: int = 50
    """An image shows a class with more pixels than this; DAFormer has 3000 at 1914 x 1052."""
    min_crop_ratio: float = 0.5
    """A crop should show more than this times min_pixels of the class its image was drawn for."""
    pseudo_margins: tuple[int, int, int, int] | None = None
    """Top, bottom, left and right margins of the (resized) target image whose pseudo labels do not
    count [pixels] (HRDA); see also adaptation.mixed.ignore_top, which is of crops."""
    patch_crop: tuple[int, int] = (64, 64)
    """Height and width of the two overlapping target crops [pixels], multiples of stride."""
    stride: int = 8
    """Grid of their corners [pixels], a multiple of the cells of the patch embeddings."""
    patch_overlap: tuple[float, float] = (0.1, 1.0)
    """Least and largest intersection over union of the two."""
    patch_scale: tuple[float, float] = (1.0, 1.0)
    """The target image, as it is on disk, is resized by a factor from this range before both are
    cut."""
    num_workers: int = 0
    """Processes that load; 0 loads in the training process. The data are the same."""

    def __post_init__(self) -> None:
        require_dataset("data.source", self.source)
        require_dataset("data.target", self.target)
        require_root("data.source_root", self.source_root, self.source)
        require_root("data.target_root", self.target_root, self.target)
        if self.classes is not None:
            require_classes("data.classes", self.classes)
            for side in ("source", "target"):
                name = getattr(self, side)
                require(name == OWN.name, f"data.{side}", name, "own, where data.classes are given")
        for name in ("source_size", "target_size"):
            size, (height, width) = getattr(self, name), self.crop
            fits = size is None or (size[0] >= height and size[1] >= width)
            require(fits, f"data.{name}", size, f"at least data.crop {tuple(self.crop)}, or null")
        margins = self.pseudo_margins
        fine = margins is None or min(margins) >= 0
        require(fine, "data.pseudo_margins", margins, "four sizes of at least 0, or null")
        for name in ("batch_size", "stride"):
            require(getattr(self, name) > 0, f"data.{name}", getattr(self, name), "above 0")
        fine = self.micro_batch is None or self.micro_batch > 0
        require(fine, "data.micro_batch", self.micro_batch, "a positive count, or null")
        require(self.num_workers >= 0, "data.num_workers", self.num_workers, "at least 0")
        require(min(self.crop) > 0, "data.crop", self.crop, "two positive sizes")
        require(
            all(side > 0 and side % self.stride == 0 for side in self.patch_crop),
            "data.patch_crop",
            self.patch_crop,
            f"two positive multiples of data.stride ({self.stride})",
        )
        low, high = self.patch_overlap
        require(0 < low <= high <= 1, "data.patch_overlap", self.patch_overlap, "a range in (0, 1]")
        low, high = self.patch_scale
        fine = 0 < low <= high < math.inf
        require(fine, "data.patch_scale", self.patch_scale, "a range of finite numbers above 0")
        share, temperature = self.max_class_share, self.rare_class_temperature
        require(0 < share <= 1, "data.max_class_share", share, "a share in (0, 1]")
        require(temperature > 0, "data.rare_class_temperature", temperature, "above 0")
        for name in ("min_pixels", "min_crop_ratio"):
            require(getattr(self, name) >= 0, f"data.{name}", getattr(self, name), "at least 0")


def images_of(
    config: DataConfig, domain: Literal["source", "target"], split: str, *, labelled: bool = True
) -> Scenes:
    """Build the source or the target of these settings; see `data.datasets.build_dataset`.

    Raises:
        ValueError: as there, with the setting of the folder that is wrong.
    """
    name, root = getattr(config, domain), getattr(config, f"{domain}_root")
    try:
        return build_dataset(name, split, root, labelled=labelled, classes=config.classes)
    except ValueError as error:
        raise ValueError(re.sub("^root ", f"data.{domain}_root ", str(error))) from error


@contextmanager
def _named(images: Scenes, number: int) -> Iterator[None]:
    """Add to what is wrong with a crop whose setting it is, and of which image."""
    try:
        yield
    except ValueError as error:
        pairs = getattr(images, "pairs", None)
        image = f"image {number}" if pairs is None else pairs[number].image
        raise ValueError(f"data.{error}, of {image}") from error


class TrainingSet(Dataset):
    """Source and target images of a slot, cut and mirrored.

    Args:
        source: labelled images. With `config.rare_class`, the embedded ones' labels are all read
            here; those on disk have their statistics there.
        target: images; their labels are never touched.
        seed: of every choice.
        with_crops: whether overlapping target crops are cut too.
        crop_is_target: whether the first of them is the target image.
    """

    def __init__(
        self,
        source: Scenes,
        target: Scenes,
        config: DataConfig,
        *,
        seed: int,
        with_crops: bool = True,
        crop_is_target: bool = False,
    ) -> None:
        fine = with_crops or not crop_is_target
        require(fine, "crop_is_target", crop_is_target, "False without crops")
        for name, images in (("source", source), ("target", target)):
            require(len(images) > 0, name, "an empty dataset", "at least one image")
        self.source, self.target = source, target
        self.config, self.seed, self.with_crops = config, seed, with_crops
        self.crop_is_target = crop_is_target
        self.rare: RareClassSampler | None = None
        if config.rare_class:
            self.rare = RareClassSampler(
                known_counts(source),
                temperature=config.rare_class_temperature,
                min_pixels=config.min_pixels,
            )

    @traced("load")
    def __getitem__(self, slot: tuple[int, int]) -> dict[str, Any]:
        """Return a slot's entries of a Batch, as numpy arrays; images are uint8 [h, w, 3]."""
        iteration, index = slot
        item: dict[str, Any] = {"iteration": iteration, "index": index}
        item |= self._source(generator(self.seed, "source", iteration, index))
        target = generator(self.seed, "target", iteration, index)
        config = self.config
        number = int(target.integers(len(self.target)))
        whole = self.target.image(number)
        if not self.crop_is_target:
            size = fitted(whole.shape, config.target_size)
            with _named(self.target, number):
                box = random_box(size, config.crop, target)
                valid = box.of(self._valid(whole.shape, size))
            parts = resized_part(whole, size, box), valid
            mirrored = target.random() < 0.5
            item["target_image"], item["target_valid"] = (
                np.flip(part, 1) if mirrored else part for part in parts
            )
        if self.with_crops:
            with _named(self.target, number):
                pair = crop_pair(
                    whole,
                    config.patch_crop,
                    generator(self.seed, "crops", iteration, index),
                    stride=config.stride,
                    overlap=config.patch_overlap,
                    scale=config.patch_scale,
                )
            item |= {"target_crops": pair.crops, "boxes": pair.boxes, "flips": pair.flips}
            if self.crop_is_target:
                with _named(self.target, number):
                    valid = Box(*pair.boxes[0]).of(self._valid(whole.shape, pair.image))
                item["target_image"] = pair.crops[0]
                item["target_valid"] = np.flip(valid, 1) if pair.flips[0] else valid
        return item

    def _valid(self, whole: tuple[int, ...], resized: tuple[int, ...]) -> np.ndarray:
        """Return where pseudo labels of an image count [H, W] bool, itself and it `resized`."""
        valid = np.ones(resized[:2], bool)
        if self.config.pseudo_margins is not None:
            # the margins are of images of `target_size`; overlapping crops have another scale
            margins = self.config.pseudo_margins
            height, width = fitted(whole, self.config.target_size)
            leave = sum(margins[:2]) < height and sum(margins[2:]) < width
            expected = f"less than the image, {height, width}"
            require(leave, "pseudo_margins", margins, expected)
            top, bottom = (round(m * resized[0] / height) for m in margins[:2])
            left, right = (round(m * resized[1] / width) for m in margins[2:])
            valid[:top] = valid[resized[0] - bottom :] = False
            valid[:, :left] = valid[:, resized[1] - right :] = False
        return valid

    def _source(self, choice: np.random.Generator) -> dict[str, np.ndarray]:
        config = self.config
        if self.rare is None:
            number, wanted = int(choice.integers(len(self.source))), None
        else:
            number, wanted = self.rare.pick(choice)
        image, label, _ = self.source[number]
        label = resize_label(label, fitted(label.shape, config.source_size))
        with _named(self.source, number):
            box = source_box(
                label,
                config.crop,
                choice,
                max_class_share=config.max_class_share,
                wanted=wanted,
                min_pixels=config.min_crop_ratio * config.min_pixels,
            )
        image, label = resized_part(image, label.shape, box), box.of(label)
        if choice.random() < 0.5:
            image, label = np.flip(image, 1), np.flip(label, 1)
        return {"source_image": image, "source_label": label}

    def collate(self, items: list[dict[str, Any]]) -> Batch:
        """Stack the slots of a step, images [..., h, w, 3] and labels still uint8.

        So they are a quarter of the bytes that workers hand over and a GPU is sent; `unpacked`
        makes them what a Batch says.
        """

        def stack(name: str) -> Tensor:
            return torch.from_numpy(np.stack([item[name] for item in items]))

        def crops(name: str, none: np.ndarray) -> Tensor:
            return stack(name) if self.with_crops else torch.from_numpy(none)

        return Batch(
            iteration=torch.tensor(items[0]["iteration"]),
            index=torch.tensor([item["index"] for item in items]),
            source_image=stack("source_image"),
            source_label=stack("source_label"),
            target_image=stack("target_image"),
            target_valid=stack("target_valid"),
            target_crops=crops(
                "target_crops", np.zeros((0, 2, *self.config.patch_crop, 3), np.uint8)
            ),
            boxes=crops("boxes", np.zeros((0, 2, 4), np.int64)),
            flips=crops("flips", np.zeros((0, 2), bool)),
        )


def unpacked(packed: Batch, device: torch.device | str) -> Batch:
    """Move what `TrainingSet.collate` made to `device`, and turn its bytes into numbers there."""
    moved = packed.to(device)
    return moved._replace(
        source_image=_images(moved.source_image),
        source_label=moved.source_label.long(),
        target_image=_images(moved.target_image),
        target_crops=_images(moved.target_crops),
    )


def _images(stacked: Tensor) -> Tensor:
    """Turn uint8 [..., h, w, 3] into float32 [..., 3, h, w] in [0, 1]."""
    return stacked.movedim(-1, -3).contiguous().float().div_(255)


class _Telling(Dataset):
    """Gives a bad file's ValueError as an item: raised in a worker, it would come with a traceback
    in the place of its message."""

    def __init__(self, training_set: TrainingSet) -> None:
        self.training_set = training_set

    def __getitem__(self, slot: tuple[int, int]) -> dict[str, Any] | ValueError:
        try:
            return self.training_set[slot]
        except ValueError as error:
            return ValueError(str(error))


def _collate(training_set: TrainingSet, items: list[Any]) -> Batch | ValueError:
    """Stack the slots of a step, or give the first error among them."""
    errors = (item for item in items if isinstance(item, ValueError))
    return next(errors, None) or training_set.collate(items)


def _end_for_parent_alone(_worker: int) -> None:
    """Let a worker ignore SIGTERM, but for the one of the process that started it.

    Schedulers send it to every process of a run, whose workers are needed until the ranks have
    taken their last step together; torch takes one that is gone for an error.
    """
    if sys.platform == "darwin":  # has no sigwaitinfo
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


class StepSampler(Sampler):
    """The slots of one rank, step by step."""

    def __init__(self, start: int, stop: int, batch_size: int, rank: int) -> None:
        self.start, self.stop = start, stop
        self.batch_size, self.rank = batch_size, rank

    def __len__(self) -> int:
        return max(self.stop - self.start, 0)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first = self.rank * self.batch_size
        slots = range(first, first + self.batch_size)
        for iteration in range(self.start, self.stop):
            yield [(iteration, slot) for slot in slots]


def batches(
    training_set: TrainingSet,
    *,
    start: int = 0,
    iterations: int,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """Yield this rank's batches, on `device`, of the steps from `start` to before `iterations`.

    Raises:
        ValueError: a rank outside the world, or a file that cannot be used; it is named.
    """
    require(0 <= rank < world_size, "rank", rank, f"in 0 ... {world_size - 1}")
    require(start >= 0, "start", start, "at least 0")
    config = training_set.config
    loader = DataLoader(
        _Telling(training_set),
        batch_sampler=StepSampler(start, iterations, config.batch_size, rank),
        collate_fn=functools.partial(_collate, training_set),
        num_workers=config.num_workers,
        worker_init_fn=_end_for_parent_alone,
        # The loader seeds its workers from this: nothing here uses it, and without it the loader
        # would draw from the generator that dropout uses.
        generator=torch.Generator(),
        # From pinned memory a batch is copied while the host goes on.
        pin_memory=torch.device(device).type == "cuda",
    )
    waiting = iter(loader)
    for _ in range(len(loader)):
        with trace_range("data"):
            packed = next(waiting)
            if isinstance(packed, ValueError):
                raise packed
            batch = unpacked(packed, device)
        yield batch
