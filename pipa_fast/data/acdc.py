# SPDX-License-Identifier: Apache-2.0
"""ACDC (Sakaridis et al., ICCV 2021): rgb_anon/CONDITION/SPLIT/… and gt/CONDITION/SPLIT/…

The images of clear weather that come with it lie in SPLIT_ref and are not read.
"""

from pathlib import Path

from pipa_fast.data.folder import Layout, Pair, paired
from pipa_fast.data.labels import SCORED_LABEL_IDS, UNSCORED_LABEL_IDS

CONDITIONS = ("fog", "night", "rain", "snow")


def adverse_pairs(root: Path, image_folder: str) -> list[Pair]:
    """Return the pairs below rgb_anon/`image_folder`/SEQUENCE, with gt laid out the same."""

    def label(image: Path) -> Path:
        inside = image.relative_to(root / "rgb_anon").parent
        stem = image.stem.removesuffix("_rgb_anon")
        return root / "gt" / inside / f"{stem}_gt_labelIds.png"

    return paired(root, f"rgb_anon/{image_folder}/*/*_rgb_anon.png", label)


def _pairs(root: Path, split: str) -> list[Pair]:
    return [pair for c in CONDITIONS for pair in adverse_pairs(root, f"{c}/{split}")]


ACDC = Layout(
    name="acdc",
    pairs=_pairs,
    labels="gt/*/{split}/*/*_gt_labelIds.png",
    splits={"train": 1600, "val": 406},
    ids=SCORED_LABEL_IDS,
    unscored=UNSCORED_LABEL_IDS,
    sizes=((1080, 1920),),
)
