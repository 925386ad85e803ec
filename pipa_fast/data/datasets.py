# SPDX-License-Identifier: Apache-2.0
"""Datasets by name: sequences of Sample with `eval_classes`, the train ids that they score."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from pipa_fast.checks import did_you_mean, require
from pipa_fast.data.acdc import ACDC
from pipa_fast.data.bdd100k import BDD100K
from pipa_fast.data.cityscapes import CITYSCAPES
from pipa_fast.data.dark_zurich import DARK_ZURICH
from pipa_fast.data.folder import FolderDataset
from pipa_fast.data.gta5 import GTA5
from pipa_fast.data.mapillary import MAPILLARY
from pipa_fast.data.own import OWN, own_layout
from pipa_fast.data.sample import Sample
from pipa_fast.data.streets import SPLIT_SIZES, Streets
from pipa_fast.data.synthia import SYNTHIA

__all__ = ["DATASETS", "LAYOUTS", "Dataset", "Sample", "build_dataset"]

STREETS: tuple[str, ...] = ("streets_synthetic", "streets_real")
LAYOUTS = {
    layout.name: layout
    for layout in (GTA5, SYNTHIA, CITYSCAPES, ACDC, DARK_ZURICH, BDD100K, MAPILLARY, OWN)
}
"""Those that lie on disk."""
DATASETS: tuple[str, ...] = (*STREETS, *LAYOUTS)


class Dataset(Protocol):
    """What training and evaluation need of a dataset."""

    eval_classes: tuple[int, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...

    def __iter__(self) -> Iterator[Sample]: ...

    def image(self, index: int) -> np.ndarray:
        """Return an image alone: no label is read."""
        ...

    def label(self, index: int) -> np.ndarray:
        """Return a label alone."""
        ...


def require_dataset(argument: str, name: str) -> None:
    """Raise a ValueError that names the argument unless `name` is a dataset's."""
    known = f"one of {', '.join(DATASETS)}{did_you_mean(name, DATASETS)}"
    require(name in DATASETS, argument, name, known)


def require_root(argument: str, root: str | Path | None, name: str) -> None:
    """Raise a ValueError that names the argument unless a dataset on disk has a root, and no other.

    Whether the folder is there is found when the dataset is built.
    """
    if name in STREETS:
        require(root is None, argument, root, f"null for {name}, which is not on disk")
    else:
        require(root is not None, argument, root, f"the folder of {name}")


def build_dataset(
    name: str,
    split: str,
    root: str | Path | None = None,
    *,
    labelled: bool = True,
    classes: Sequence[str] | None = None,
) -> Dataset:
    """Build the dataset of that name (see DATASETS) for the split, "train" or "val".

    `root` is the folder of a dataset on disk, None for the embedded ones. With `labelled=False`,
    images on disk need no labels. `classes` are the names of those that the labels of `own` number
    from 0, None for Cityscapes'. Raises ValueError for an unknown name or split, for a root that is
    missing, too much, or without such images, and for classes of another dataset than `own`.
    """
    require_dataset("name", name)
    require(classes is None or name == OWN.name, "classes", classes, f"null for {name}")
    require_root("root", root, name)
    if root is not None:
        layout = own_layout(classes) if name == OWN.name else LAYOUTS[name]
        return FolderDataset(layout, root, split, labelled=labelled)
    require(split in SPLIT_SIZES, "split", split, f"one of {', '.join(SPLIT_SIZES)}")
    return Streets(
        "synthetic" if name == "streets_synthetic" else "real",
        "train" if split == "train" else "val",
    )
