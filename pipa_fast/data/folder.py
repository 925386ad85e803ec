# SPDX-License-Identifier: Apache-2.0
"""Datasets on disk: pairs of an image file and a label file, and what the label's ids mean."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipa_fast.checks import require
from pipa_fast.data.files import named_as_image, read_ids, read_image, resize_label
from pipa_fast.data.labels import IGNORE_INDEX, NUM_CLASSES
from pipa_fast.data.sample import Sample

TRAIN_IDS = "_labelTrainIds"
"""Ends the stem of a label file that `prepare` wrote, or that came with train ids."""


class Pair(NamedTuple):
    """The files of one image."""

    image: Path
    label: Path | None  # None where the dataset publishes none

    @property
    def converted(self) -> Path | None:
        """The same label as train ids, NAME_labelTrainIds.png beside it, there or not."""
        if self.label is None:
            return None
        stem = self.label.stem.removesuffix("_labelIds")
        return self.label.with_name(f"{stem}{TRAIN_IDS}.png")

    @property
    def present(self) -> Path | None:
        """The label file to read: the conversion where it is there, else the published one."""
        for path in (self.converted, self.label):
            if path is not None and path.is_file():
                return path
        return None


@dataclass(kw_only=True, slots=True, frozen=True)
class Layout:
    """How a published dataset lies on disk."""

    name: str
    images: str
    """Pattern of a split's image files below root, with {split} in the split's place."""
    label_of: Callable[[Path], Path | None]
    """An image's path to its label's, both below root; None where the dataset publishes none."""
    labels: str
    """Pattern of a split's published label files below root, with {split} in the split's place."""
    splits: Mapping[str, int | None]
    """Official number of images of each split, None where there is none."""
    ids: Mapping[int, int]
    """Train id by the id in a label file; ids without one are in `unscored`."""
    unscored: frozenset[int]
    sizes: tuple[tuple[int, int], ...] | None
    """Heights and widths that images have, None where there are many."""
    eval_classes: tuple[int, ...] = tuple(range(NUM_CLASSES))
    palette: np.ndarray | None = None
    """[256, 3] uint8, RGB by id, of label files that have a palette; None where none is known."""
    stretched: frozenset[str] = frozenset()
    """Names of images whose published label has another size: it is resized to the image's. What
    size such an image has is not checked."""

    def pairs(self, root: Path, split: str) -> list[Pair]:
        """Return the files of a split, by name."""
        found = []
        for image in sorted(root.glob(self.images.format(split=split))):
            if not named_as_image(image):
                continue
            label = self.label_of(image.relative_to(root))
            found.append(Pair(image, None if label is None else root / label))
        return found

    def table(self) -> np.ndarray:
        """Return train ids by label id [256] int16, -1 for ids that the dataset does not have."""
        table = np.full(256, -1, np.int16)
        table[list(self.unscored)] = IGNORE_INDEX
        for label_id, train_id in self.ids.items():
            table[label_id] = train_id
        return table

    def train_id_table(self) -> np.ndarray:
        """Return the table of files that hold train ids already [256] int16."""
        table = np.full(256, -1, np.int16)
        train_ids = list(self.ids.values())
        table[train_ids] = train_ids
        table[IGNORE_INDEX] = IGNORE_INDEX
        return table


class FolderDataset:
    """The images of one split of a dataset on disk.

    Labels are read as train ids, from the converted file where there is one. `image` and `label`
    read one of the two: who asks for an image opens no label. With `labelled=False` there may be
    images without one, as a target's are.

    Raises:
        ValueError: an unknown split, a folder that is missing or empty, or an image whose label is
            missing. Reading an item raises it for a file that cannot be read, a label of another
            size than its image, ids that the dataset does not have, and an image or a label that
            its EXIF turns. `image` alone turns such an image upright.
    """

    def __init__(
        self, layout: Layout, root: Path | str, split: str, *, labelled: bool = True
    ) -> None:
        self.layout, self.root, self.split = layout, Path(root), split
        known = ", ".join(layout.splits)
        require(split in layout.splits, "split", split, f"one of {known} for {layout.name}")
        require(self.root.is_dir(), "root", str(root), f"the folder of {layout.name}")
        self.pairs = layout.pairs(self.root, split)
        require(
            len(self.pairs) > 0,
            "root",
            str(root),
            f"a folder with {layout.name}'s {split} images, {layout.images.format(split=split)}",
        )
        bare = unlabelled(self.pairs) if labelled else []
        if bare:
            raise ValueError(
                f"root {str(root)!r} must have a label for every image; {len(bare)} of "
                f"{len(self.pairs)} have none, such as {bare[0].image}, whose label would be "
                f"{bare[0].label}"
            )
        self.eval_classes = layout.eval_classes
        self._table, self._train_ids = layout.table(), layout.train_id_table()

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int, /) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} images")
        pair = self.pairs[index]
        image, label = self.image(index, labelled=True), self.label(index)
        if pair.image.name in self.layout.stretched:
            label = resize_label(label, (image.shape[0], image.shape[1]))
        if label.shape != image.shape[:2]:
            raise ValueError(
                f"{pair.present} must be of its image's size {image.shape[:2]}; it is {label.shape}"
            )
        return Sample(image, label, pair.image.stem)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def image(self, index: int, *, labelled: bool = False) -> np.ndarray:
        """Return an image, uint8 RGB [H, W, 3]; `labelled` as data.files.read_image has it."""
        return read_image(self.pairs[index].image, labelled=labelled)

    def label(self, index: int) -> np.ndarray:
        """Return a label, uint8 train ids [H, W]."""
        pair = self.pairs[index]
        path = pair.present
        if path is None:
            raise ValueError(f"{pair.image} has no label{f' {pair.label}' if pair.label else ''}")
        return to_train_ids(path, self._train_ids if path == pair.converted else self._table)


def to_train_ids(path: Path, table: np.ndarray) -> np.ndarray:
    """Read a label file and return train ids [H, W] uint8.

    Raises:
        ValueError: the file cannot be read, or holds ids that `table` does not know.
    """
    ids = read_ids(path)
    mapped = table[ids]
    if mapped.min(initial=0) < 0:
        unknown = np.unique(ids[mapped < 0]).tolist()
        known = np.flatnonzero(table[:IGNORE_INDEX] >= 0)
        ids = f"{known.min()} to {known.max()}{' and 255' if table[IGNORE_INDEX] >= 0 else ''}"
        raise ValueError(
            f"{path} holds label ids {unknown[:8]}, which the dataset does not have: "
            f"known are {ids}; make it anew, or leave the image out"
        )
    return mapped.astype(np.uint8)


def without_image(layout: Layout, root: Path, split: str, pairs: Sequence[Pair]) -> list[Path]:
    """Return the label files of a split whose image is missing, of which `pairs` tell nothing."""
    known = {pair.label for pair in pairs}
    published = filter(named_as_image, root.glob(layout.labels.format(split=split)))
    return sorted(p for p in published if p not in known and not p.stem.endswith(TRAIN_IDS))


def unlabelled(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs that should have a label and have none, published or converted."""
    return [pair for pair in pairs if pair.label is not None and pair.present is None]
