# SPDX-License-Identifier: Apache-2.0
"""GTA5 (Richter et al., ECCV 2016): images/00001.png and labels/00001.png, palette label ids."""

from pathlib import Path

from pipa_fast.data.folder import Layout, Pair, paired
from pipa_fast.data.labels import SCORED_LABEL_IDS, UNSCORED_LABEL_IDS


def _pairs(root: Path, split: str) -> list[Pair]:
    def label(image: Path) -> Path:
        return root / "labels" / image.name

    return paired(root, "images/*.png", label)


GTA5 = Layout(
    name="gta5",
    pairs=_pairs,
    splits={"train": 24966},
    ids=SCORED_LABEL_IDS,
    unscored=UNSCORED_LABEL_IDS | {34},  # licence plates
    size=(1052, 1914),
    stretched=frozenset({"15188.png", "17705.png"}),
)
