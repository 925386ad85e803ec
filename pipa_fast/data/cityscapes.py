# SPDX-License-Identifier: Apache-2.0
"""Cityscapes (Cordts et al., CVPR 2016): leftImg8bit/SPLIT/CITY/… and gtFine/SPLIT/CITY/…"""

from pathlib import Path

from pipa_fast.data.folder import Layout, Pair, paired
from pipa_fast.data.labels import SCORED_LABEL_IDS, UNSCORED_LABEL_IDS


def _pairs(root: Path, split: str) -> list[Pair]:
    def label(image: Path) -> Path:
        stem = image.stem.removesuffix("_leftImg8bit")
        return root / "gtFine" / split / image.parent.name / f"{stem}_gtFine_labelIds.png"

    return paired(root, f"leftImg8bit/{split}/*/*_leftImg8bit.png", label)


CITYSCAPES = Layout(
    name="cityscapes",
    pairs=_pairs,
    labels="gtFine/{split}/*/*_gtFine_labelIds.png",
    splits={"train": 2975, "val": 500},
    ids=SCORED_LABEL_IDS,
    unscored=UNSCORED_LABEL_IDS,
    sizes=((1024, 2048),),
)
