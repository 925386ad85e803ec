# SPDX-License-Identifier: Apache-2.0
"""Datasets by name: sequences of Sample with `eval_classes`, the train ids that they score."""

from collections.abc import Iterator
from typing import Any, Protocol

from ..checks import require
from .sample import Sample
from .streets import SPLIT_SIZES, Streets

__all__ = ["DATASETS", "Dataset", "Sample", "build_dataset"]

DATASETS: tuple[str, ...] = ("streets_synthetic", "streets_real")


class Dataset(Protocol):
    """What training and evaluation need of a dataset."""

    eval_classes: tuple[int, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...

    def __iter__(self) -> Iterator[Sample]: ...


def build_dataset(name: str, split: str, **options: Any) -> Dataset:
    """Build the dataset of that name (see DATASETS) for the split, "train" or "val".

    Raises ValueError for an unknown name or split, and for options that the dataset lacks.
    """
    require(name in DATASETS, "name", name, f"one of {', '.join(DATASETS)}")
    require(split in SPLIT_SIZES, "split", split, f"one of {', '.join(SPLIT_SIZES)}")
    require(not options, "options", options, f"empty for {name}")
    return Streets(
        "synthetic" if name == "streets_synthetic" else "real",
        "train" if split == "train" else "val",
    )
