# SPDX-License-Identifier: Apache-2.0
"""BDD100K (Yu et al., CVPR 2020): images/10k/SPLIT/NAME.jpg, labels/sem_seg/masks/SPLIT/NAME.png.

Its masks hold Cityscapes' train ids.
"""

from pathlib import Path

from pipa_fast.data.folder import Layout, Pair, paired
from pipa_fast.data.labels import IGNORE_INDEX, NUM_CLASSES


def _pairs(root: Path, split: str) -> list[Pair]:
    def label(image: Path) -> Path:
        return root / "labels" / "sem_seg" / "masks" / split / f"{image.stem}.png"

    return paired(root, f"images/10k/{split}/*.jpg", label)


BDD100K = Layout(
    name="bdd100k",
    pairs=_pairs,
    labels="labels/sem_seg/masks/{split}/*.png",
    splits={"train": 7000, "val": 1000},
    ids={i: i for i in range(NUM_CLASSES)},
    unscored=frozenset({IGNORE_INDEX}),
    sizes=((720, 1280),),
)
