# SPDX-License-Identifier: Apache-2.0
"""Anyone's images: images/SPLIT/NAME.png or .jpg, labels/SPLIT/NAME.png.

Labels hold train ids, 255 where a pixel does not count. Training images of a target need none.
"""

from pathlib import Path

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
