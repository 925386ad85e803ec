# SPDX-License-Identifier: Apache-2.0
"""BDD100K (Yu et al., CVPR 2020): images/10k/SPLIT/NAME.jpg, labels/sem_seg/masks/SPLIT/NAME.png.

Its masks hold Cityscapes' train ids.
"""

from pathlib import Path

from pipa_fast.data.folder import Layout
from pipa_fast.data.labels import IGNORE_INDEX, NUM_CLASSES


def _label(image: Path) -> Path:
    return Path("labels", "sem_seg", "masks", image.parent.name, f"{image.stem}.png")


BDD100K = Layout(
    name="bdd100k",
    images="images/10k/{split}/*.jpg",
    label_of=_label,
    labels="labels/sem_seg/masks/{split}/*.png",
    splits={"train": 7000, "val": 1000},
    ids={i: i for i in range(NUM_CLASSES)},
    unscored=frozenset({IGNORE_INDEX}),
    sizes=((720, 1280),),
)
