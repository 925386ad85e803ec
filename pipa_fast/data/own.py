# SPDX-License-Identifier: Apache-2.0
"""Anyone's images: images/SPLIT/NAME.png or .jpg, labels/SPLIT/NAME.png.

Labels hold train ids, 255 where a pixel does not count. Training images of a target need none.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipa_fast.checks import require
from pipa_fast.data.folder import Layout
from pipa_fast.data.labels import IGNORE_INDEX, NUM_CLASSES


def _label(image: Path) -> Path:
    return Path("labels", image.parent.name, f"{image.stem}.png")


OWN = Layout(
    name="own",
    images="images/{split}/*",
    label_of=_label,
    labels="labels/{split}/*.png",
    splits={"train": None, "val": None},
    ids={i: i for i in range(NUM_CLASSES)},
    unscored=frozenset({IGNORE_INDEX}),
    sizes=None,
)


def require_classes(argument: str, names: Sequence[str]) -> None:
    """Raise a ValueError that names the argument unless these can be the classes of labels."""
    fine = 2 <= len(set(names)) == len(names) < IGNORE_INDEX and all(names)
    require(fine, argument, list(names), f"2 to {IGNORE_INDEX - 1} different names, or null")


def own_layout(classes: Sequence[str] | None) -> Layout:
    """Return the layout of labels that number these classes from 0; None: Cityscapes' 19."""
    if classes is None:
        return OWN
    require_classes("classes", classes)
    ids = range(len(classes))
    return replace(OWN, ids={i: i for i in ids}, eval_classes=tuple(ids))
