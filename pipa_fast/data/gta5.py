# SPDX-License-Identifier: Apache-2.0
"""GTA5 (Richter et al., ECCV 2016): images/00001.png and labels/00001.png, palette label ids.

Some 20,000 images are 1914 x 1052, the others 1914 x 1046. Of 60 in a row, the labels have another
size than the images, by a few pixels; and two images, one white and one black, are half as large as
their labels.
"""

from pathlib import Path

from pipa_fast.data.folder import Layout
from pipa_fast.data.labels import GTA5_PALETTE, SCORED_LABEL_IDS, UNSCORED_LABEL_IDS


def _label(image: Path) -> Path:
    return Path("labels", image.name)


GTA5 = Layout(
    name="gta5",
    images="images/*.png",
    label_of=_label,
    labels="labels/*.png",
    splits={"train": 24966},
    ids=SCORED_LABEL_IDS,
    unscored=UNSCORED_LABEL_IDS | {34},  # licence plates
    sizes=((1052, 1914), (1046, 1914)),
    palette=GTA5_PALETTE,
    stretched=frozenset(f"{number}.png" for number in (15188, 17705, *range(20801, 20861))),
)
