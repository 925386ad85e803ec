# SPDX-License-Identifier: Apache-2.0
"""Verifies a dataset on disk, converts its labels to train ids, and counts its classes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipa_fast import __version__
from pipa_fast.checks import require
from pipa_fast.data.files import read_image, read_palette, write_whole
from pipa_fast.data.folder import Layout, Pair, to_train_ids, unlabelled, without_image
from pipa_fast.data.journal import Journal
from pipa_fast.data.labels import count_pixels
from pipa_fast.data.statistics import files_of

JOURNAL = ".prepare.jsonl"
"""In the dataset's folder, between a run that did not end well and the next."""


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
    absent: list[int]  # train ids that are scored, and that no training label holds
    bare: bool  # whether the training images have no labels at all, as a target's need none
    resumed: int  # pairs that an earlier run, which did not end well, had found sound


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
    conversion that is what its label becomes is kept, and one of a label that was replaced is made
    anew. The training split's class statistics are written only where nothing was wrong. A run
    after one that was interrupted, or that found something wrong, reads what that one did not find
    sound; then the next reads everything. Training images of which none has a label are read all
    the same: they may be a target's.

    Args:
        check: read everything, and write nothing.
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
    looked = " or ".join(layout.images.format(split=split) for split in layout.splits)
    expected = f"a folder with {layout.name}'s images, {looked}"
    require(any(found.values()), "root", str(root), expected)
    problems = [] if subset else _wrong_counts(layout, root, found)
    examine = partial(look, layout=layout, sizes=not subset, write=not check)
    lone = {split: set(unlabelled(pairs)) for split, pairs in found.items()}
    bare = bool(found["train"]) and len(lone["train"]) == len(found["train"])
    if bare:
        found["train"] = [Pair(pair.image, None) for pair in found["train"]]
    written, resumed = 0, 0
    counts: dict[Pair, np.ndarray] = {}
    terms = [__version__, layout.name, list(layout.eval_classes), subset]
    journal = Journal(None if check else root / JOURNAL, terms)
    with journal, ProcessPoolExecutor(jobs, initializer=_leave_to_parent) as pool:
        for split, pairs in found.items():
            problems += [
                f"{pair.label} is missing, the label of {pair.image}"
                for pair in pairs
                if pair in lone[split]
            ]
            whole = [pair for pair in pairs if pair not in lone[split]]
            known, rest = journal.split(whole)
            resumed += len(known)
            seen = progress(pool.map(examine, rest, chunksize=4), split, len(rest))
            for pair, each in zip(rest, seen, strict=True):
                problems += each.problems
                written += each.written
                known[pair] = each.counts
                if not each.problems:
                    journal.add(pair, each.counts)
            if split == "train":
                counts = {p: c for p in whole if (c := known[p]) is not None}
    statistics = _count(root, counts) if counts and not (problems or check) else []
    if not problems:
        journal.end()
    sizes = {split: len(pairs) for split, pairs in found.items()}
    pixels = np.sum(list(counts.values()), axis=0)
    absent = [c for c in layout.eval_classes if not pixels[c]] if counts else []
    return Summary(sizes, written, statistics, problems, absent, bare, resumed)


def _leave_to_parent() -> None:
    """Let a worker end with the process that started it, and leave Ctrl-C, sent to both, to that.

    Were that one killed, the worker would wait forever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _wrong_counts(layout: Layout, root: Path, found: dict[str, list[Pair]]) -> list[str]:
    """Tell of splits of another size than the published one, and of images that labels tell of."""
    problems = []
    for split, count in layout.splits.items():
        pairs = found[split]
        if count is not None and len(pairs) != count:
            problems.append(f"{split}: {len(pairs)} images, not the published {count}")
        lone = without_image(layout, root, split, pairs)
        problems += [f"the image of {label} is missing" for label in lone]
    return problems


def _count(root: Path, counts: dict[Pair, np.ndarray]) -> list[Path]:
    """Write the class statistics of pairs with these counts, and return the files."""
    labels = [str(pair.present) for pair in counts]
    texts = files_of(np.stack(list(counts.values())), labels)
    for name, text in texts.items():
        write_whole(root / name, partial(Path.write_text, data=text))
    return [root / name for name in texts]


def look(pair: Pair, *, layout: Layout, sizes: bool, write: bool) -> Seen:
    """Read a pair whole, convert its label if `write`, and tell what is wrong with it.

    With `sizes`, an image of another size than the published ones is.
    """
    problems: list[str] = []
    stretched = pair.image.name in layout.stretched
    published = layout.sizes if sizes and not stretched else None
    shape: tuple[int, int] | None = None
    try:
        image = read_image(pair.image, labelled=pair.label is not None)
        shape = (image.shape[0], image.shape[1])
        if published is not None and shape not in published:
            expected = " or ".join(f"{height} x {width}" for height, width in published)
            problems.append(f"{pair.image} is {shape[0]} x {shape[1]}, not {expected}")
    except ValueError as error:
        problems.append(str(error))
    if pair.label is None:
        return Seen(None, False, problems)
    try:
        label, written = _converted(pair, layout, write)
    except ValueError as error:
        return Seen(None, False, [*problems, str(error)])
    if shape is not None and label.shape != shape and not stretched:
        problems.append(f"{pair.label} is {label.shape}, its image {shape}")
    return Seen(count_pixels(label), written, problems)


def _converted(pair: Pair, layout: Layout, write: bool) -> tuple[np.ndarray, bool]:
    """Return a label as train ids, and whether its conversion was written now."""
    table, own = layout.table(), layout.train_id_table()
    assert pair.label is not None
    made = None
    if pair.converted is not None and pair.converted.is_file():
        try:
            made = to_train_ids(pair.converted, own)
        except ValueError:
            if not pair.label.is_file():
                raise
            # else made anew from what was published
    if made is not None and not pair.label.is_file():
        return made, False
    label = to_train_ids(pair.label, table)
    _check_palette(pair.label, layout, label)
    if made is not None and np.array_equal(made, label):
        return label, False
    if pair.converted is None or np.array_equal(table, own):
        return label, False
    if not write:
        if made is not None:  # training would read it
            raise ValueError(f"{pair.converted} is not what {pair.label} becomes; prepare it anew")
        return label, False
    write_whole(pair.converted, partial(Image.fromarray(label).save, format="PNG"))
    return label, True


def _check_palette(path: Path, layout: Layout, label: np.ndarray) -> None:
    """Raise ValueError where a class that a label shows has another colour than the published one.

    A label that was saved anew as a palette image may number its colours in another order: its ids
    are then no label ids, though each is one that the dataset has.
    """
    if layout.palette is None or (colours := read_palette(path)) is None:
        return
    for label_id, train_id in layout.ids.items():
        colour = tuple(colours[label_id].tolist()) if label_id < len(colours) else None
        published = tuple(layout.palette[label_id].tolist())
        if colour != published and (label == train_id).any():
            raise ValueError(
                f"{path} has the colour {colour} for label id {label_id} in its palette, not "
                f"{published}: its ids may not be the published ones; copy it anew from where it "
                "came, or save it without a palette if they are"
            )
