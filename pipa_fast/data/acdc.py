# SPDX-License-Identifier: Apache-2.0
"""ACDC (Sakaridis et al., ICCV 2021): rgb_anon/CONDITION/SPLIT/… and gt/CONDITION/SPLIT/…

The images of clear weather that come with it lie in SPLIT_ref and are not read.
"""

from pathlib import Path

from pipa_fast.data.folder import Layout
from pipa_fast.data.labels import SCORED_LABEL_IDS, UNSCORED_LABEL_IDS


def adverse_label(image: Path) -> Path:
    """Return the label of rgb_anon/…/NAME_rgb_anon.png: gt/…/NAME_gt_labelIds.png."""
    stem = image.stem.removesuffix("_rgb_anon")
    return Path("gt", *image.parts[1:-1], f"{stem}_gt_labelIds.png")


ACDC = Layout(
    name="acdc",
    images="rgb_anon/*/{split}/*/*_rgb_anon.png",
    label_of=adverse_label,
    labels="gt/*/{split}/*/*_gt_labelIds.png",
    splits={"train": 1600, "val": 406},
    ids=SCORED_LABEL_IDS,
    unscored=UNSCORED_LABEL_IDS,
    sizes=((1080, 1920),),
)
