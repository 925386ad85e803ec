# SPDX-License-Identifier: Apache-2.0
"""Pixels of each class in each training image, in DAFormer's files: what rare classes are told by.

`sample_class_stats.json` is a list with one mapping for each image, {train id: pixels, "file":
label}; `samples_with_class.json` maps train ids to lists of [label, pixels], most pixels last or in
no order. Ids are strings, as JSON has them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipa_fast.checks import require
from pipa_fast.data.datasets import Dataset
from pipa_fast.data.folder import TRAIN_IDS, FolderDataset
from pipa_fast.data.labels import IGNORE_INDEX
from pipa_fast.data.rare_classes import class_counts

PER_IMAGE, PER_CLASS = "sample_class_stats.json", "samples_with_class.json"


def known_counts(dataset: Dataset) -> np.ndarray:
    """Return pixels by image and class [images, 255] int64.

    Those of a dataset on disk are read from its statistics, those of the embedded pair counted.

    Raises:
        ValueError: the statistics are missing, of other images, or no such file.
    """
    if not isinstance(dataset, FolderDataset):
        return class_counts(dataset)
    names = [_key((pair.label or pair.image).name) for pair in dataset.pairs]
    return read_counts(dataset.root / PER_IMAGE, names, dataset.layout.name)


def _key(label: str) -> str:
    """Return what a label file and its conversion have in common in their names."""
    stem = Path(label).stem
    return stem.removesuffix(TRAIN_IDS).removesuffix("_labelIds")


def read_counts(path: Path, names: Sequence[str], dataset: str) -> np.ndarray:
    """Return the counts [images, 255] of the images with these names, in their order."""
    if not path.is_file():
        raise ValueError(
            f"data.rare_class needs {path}; write it with `python -m pipa_fast.prepare {dataset} "
            f"--root {path.parent}`"
        )
    try:
        records = json.loads(path.read_text())
        found = {_key(record["file"]): counts_of(record) for record in records}
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} is no list of class counts: {error!r}") from error
    missing = [name for name in names if name not in found]
    require(
        not missing,
        str(path),
        f"{len(found)} images",
        f"of all {len(names)} images; {len(missing)} are not in it, such as {missing[:1]}",
    )
    return np.stack([found[name] for name in names])


def record_of(counts: np.ndarray) -> dict[str, int]:
    """Return a label's pixels by train id [255] as JSON has them: {train id: pixels}."""
    return {str(c): int(counts[c]) for c in np.flatnonzero(counts)}


def counts_of(record: Mapping[str, Any]) -> np.ndarray:
    """Return the pixels by train id [255] int64 of a record, which may name its file too."""
    row = np.zeros(IGNORE_INDEX, np.int64)
    for key, pixels in record.items():
        if key != "file" and int(key) != IGNORE_INDEX:
            row[int(key)] = pixels
    return row


def files_of(counts: np.ndarray, labels: Sequence[str]) -> dict[str, str]:
    """Return the text of both statistics files, by name, for labels with these counts."""
    per_image: list[dict[str, Any]] = []
    per_class: dict[str, list[list[Any]]] = {}
    for row, label in zip(counts, labels, strict=True):
        present = record_of(row)
        per_image.append({**present, "file": label})
        for name, pixels in present.items():
            per_class.setdefault(name, []).append([label, pixels])
    ordered = {name: per_class[name] for name in sorted(per_class, key=int)}
    return {PER_IMAGE: json.dumps(per_image), PER_CLASS: json.dumps(ordered)}
