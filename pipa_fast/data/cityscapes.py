# SPDX-License-Identifier: Apache-2.0
"""Cityscapes (Cordts et al., CVPR 2016): leftImg8bit/SPLIT/CITY/… and gtFine/SPLIT/CITY/…"""

from pathlib import Path

from pipa_fast.data.folder import Layout
from pipa_fast.data.labels import SCORED_LABEL_IDS, UNSCORED_LABEL_IDS


def _label(image: Path) -> Path:
    stem = image.stem.removesuffix("_leftImg8bit")
    return Path("gtFine", *image.parts[1:-1], f"{stem}_gtFine_labelIds.png")


CITYSCAPES = Layout(
    name="cityscapes",
    images="leftImg8bit/{split}/*/*_leftImg8bit.png",
    label_of=_label,
    labels="gtFine/{split}/*/*_gtFine_labelIds.png",
    splits={"train": 2975, "val": 500},
    ids=SCORED_LABEL_IDS,
    unscored=UNSCORED_LABEL_IDS,
    sizes=((1024, 2048),),
)
