# SPDX-License-Identifier: Apache-2.0
"""Dark Zurich (Sakaridis et al., ICCV 2019): rgb_anon/SPLIT/night/…; only val has labels."""

from pathlib import Path

from pipa_fast.data.acdc import ACDC, adverse_label
from pipa_fast.data.folder import Layout


def _label(image: Path) -> Path | None:
    return None if image.parts[1] == "train" else adverse_label(image)


DARK_ZURICH = Layout(
    name="dark_zurich",
    images="rgb_anon/{split}/night/*/*_rgb_anon.png",
    label_of=_label,
    labels="gt/{split}/night/*/*_gt_labelIds.png",
    splits={"train": 2416, "val": 50},
    ids=ACDC.ids,
    unscored=ACDC.unscored,
    sizes=((1080, 1920),),
)
