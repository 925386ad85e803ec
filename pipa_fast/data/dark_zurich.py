# SPDX-License-Identifier: Apache-2.0
"""Dark Zurich (Sakaridis et al., ICCV 2019): rgb_anon/SPLIT/night/…; only val has labels."""

from pathlib import Path

from pipa_fast.data.acdc import ACDC, adverse_pairs
from pipa_fast.data.folder import Layout, Pair


def _pairs(root: Path, split: str) -> list[Pair]:
    if split == "val":
        return adverse_pairs(root, "val/night")
    images = sorted(root.glob("rgb_anon/train/night/*/*_rgb_anon.png"))
    return [Pair(image, None) for image in images]


DARK_ZURICH = Layout(
    name="dark_zurich",
    pairs=_pairs,
    labels="gt/{split}/night/*/*_gt_labelIds.png",
    splits={"train": 2416, "val": 50},
    ids=ACDC.ids,
    unscored=ACDC.unscored,
    sizes=((1080, 1920),),
)
