# SPDX-License-Identifier: Apache-2.0
"""Verifies a dataset on disk, converts its labels to train ids, and counts its classes."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipa_fast.checks import require
from pipa_fast.data.files import read_image
from pipa_fast.data.folder import Layout, Pair, to_train_ids, train_id_table, unlabelled
from pipa_fast.data.labels import IGNORE_INDEX, NUM_CLASSES
from pipa_fast.data.statistics import files_of


class Seen(NamedTuple):
    """What one pair of files holds."""

    counts: np.ndarray | None  # [255] pixels by train id, None without a label
    written: bool  # whether its conversion is new
    problems: list[str]


class Summary(NamedTuple):
    """What was found and done."""

    images: dict[str, int]  # by split
    written: int  # labels converted now; the others were there already, or need no conversion
    statistics: list[Path]
    problems: list[str]


def prepare(
    layout: Layout,
    root: Path | str,
    *,
    check: bool = False,
    subset: bool = False,
    jobs: int = 1,
    progress: Callable[[Iterator[Seen], str, int], Iterator[Seen]] = lambda seen, *_: seen,
) -> Summary:
    """Read every image and label below `root`, and write what training wants.

    Labels of other ids are written as train ids beside themselves, each under its name in one go; a
    conversion that is sound is kept, so that an interrupted run goes on where it stopped. The
    training split's class statistics are written only where nothing was wrong.

    Args:
        check: write nothing.
        subset: accept other counts of images than the published ones, and other sizes.
        jobs: processes that read.
        progress: wraps what is seen of a split, its name and its number of images.

    Raises:
        ValueError: `root` is no folder, or holds none of the dataset's splits.
    """
    root = Path(root)
    require(root.is_dir(), "root", str(root), f"the folder of {layout.name}")
    require(jobs > 0, "jobs", jobs, "a positive count")
    found = {split: layout.pairs(root, split) for split in layout.splits}
    expected = f"a folder with {layout.name}'s images in the published layout"
    require(any(found.values()), "root", str(root), expected)
    summary = Summary({split: len(pairs) for split, pairs in found.items()}, 0, [], [])
    if not subset:
        summary.problems.extend(_wrong_counts(layout, found))
    for split, pairs in found.items():
        summary = _split(layout, root, split, pairs, summary, check, subset, jobs, progress)
    return summary


def _wrong_counts(layout: Layout, found: dict[str, list[Pair]]) -> list[str]:
    return [
        f"{split}: {len(found[split])} images, not the published {count}"
        for split, count in layout.splits.items()
        if len(found[split]) != count
    ]


def _split(
    layout: Layout,
    root: Path,
    split: str,
    pairs: list[Pair],
    summary: Summary,
    check: bool,
    subset: bool,
    jobs: int,
    progress: Callable[[Iterator[Seen], str, int], Iterator[Seen]],
) -> Summary:
    bare = unlabelled(pairs)
    problems = [f"{pair.label} is missing, the label of {pair.image}" for pair in bare]
    whole = [pair for pair in pairs if pair not in bare]
    size = None if subset else layout.size
    examine = partial(look, layout=layout, size=size, write=not check)
    with ProcessPoolExecutor(jobs) as pool:
        seen = list(progress(pool.map(examine, whole, chunksize=4), split, len(whole)))
    problems += [problem for each in seen for problem in each.problems]
    statistics: list[Path] = []
    counts = [each.counts for each in seen if each.counts is not None]
    if split == "train" and counts and not (problems or summary.problems or check):
        labels = [str(pair.converted or pair.label or pair.image) for pair in whole]
        for name, text in files_of(np.stack(counts), labels).items():
            _write(root / name, lambda partial_path, text=text: partial_path.write_text(text))
            statistics.append(root / name)
    return Summary(
        summary.images,
        summary.written + sum(each.written for each in seen),
        summary.statistics + statistics,
        summary.problems + problems,
    )


def look(pair: Pair, *, layout: Layout, size: tuple[int, int] | None, write: bool) -> Seen:
    """Read a pair whole, convert its label if `write`, and tell what is wrong with it."""
    problems: list[str] = []
    shape: tuple[int, int] | None = None
    try:
        image = read_image(pair.image)
        shape = (image.shape[0], image.shape[1])
        if size is not None and shape != size:
            problems.append(f"{pair.image} is {shape[0]} x {shape[1]}, not {size[0]} x {size[1]}")
    except ValueError as error:
        problems.append(str(error))
    if pair.label is None:
        return Seen(None, False, problems)
    try:
        label, written = _converted(pair, layout.table(), write)
    except ValueError as error:
        return Seen(None, False, [*problems, str(error)])
    stretched = pair.image.name in layout.stretched
    if shape is not None and label.shape != shape and not stretched:
        problems.append(f"{pair.label} is {label.shape}, its image {shape}")
    found = np.bincount(label.ravel(), minlength=IGNORE_INDEX + 1)[:IGNORE_INDEX]
    return Seen(found.astype(np.int64), written, problems)


def _converted(pair: Pair, table: np.ndarray, write: bool) -> tuple[np.ndarray, bool]:
    """Return a label as train ids, and whether its conversion was written now."""
    own = train_id_table()
    if pair.converted is not None and pair.converted.is_file():
        try:
            return to_train_ids(pair.converted, own), False
        except ValueError:
            if pair.label is None or not pair.label.is_file():
                raise
            # else made anew from what was published
    assert pair.label is not None
    label = to_train_ids(pair.label, table)
    same = np.array_equal(table[:NUM_CLASSES], own[:NUM_CLASSES])
    if pair.converted is None or same or not write:
        return label, False
    _write(pair.converted, partial(Image.fromarray(label).save, format="PNG"))
    return label, True


def _write(path: Path, save: Callable[[Path], object]) -> None:
    """Write a file under its name in one go."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
