# SPDX-License-Identifier: Apache-2.0
"""Datasets by name: sequences of Sample with `eval_classes`, the train ids that they score."""

from collections.abc import Iterator
from typing import Protocol

from pipa_fast.checks import did_you_mean, require
from pipa_fast.data.sample import Sample
from pipa_fast.data.streets import SPLIT_SIZES, Streets

__all__ = ["DATASETS", "Dataset", "Sample", "build_dataset"]

DATASETS: tuple[str, ...] = ("streets_synthetic", "streets_real")


class Dataset(Protocol):
    """What training and evaluation need of a dataset."""

    eval_classes: tuple[int, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...

    def __iter__(self) -> Iterator[Sample]: ...


def require_dataset(argument: str, name: str) -> None:
    """Raise a ValueError that names the argument unless `name` is a dataset's."""
    known = f"one of {', '.join(DATASETS)}{did_you_mean(name, DATASETS)}"
    require(name in DATASETS, argument, name, known)


def build_dataset(name: str, split: str) -> Dataset:
    """Build the dataset of that name (see DATASETS) for the split, "train" or "val".

    Raises ValueError for an unknown name or split.
    """
    require_dataset("name", name)
    require(split in SPLIT_SIZES, "split", split, f"one of {', '.join(SPLIT_SIZES)}")
    return Streets(
        "synthetic" if name == "streets_synthetic" else "real",
        "train" if split == "train" else "val",
    )
