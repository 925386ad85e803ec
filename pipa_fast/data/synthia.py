# SPDX-License-Identifier: Apache-2.0
"""SYNTHIA's RAND_CITYSCAPES (Ros et al., CVPR 2016): RGB/NAME.png and GT/LABELS/NAME.png.

Labels have three channels of 16 bits; the first holds the class, the second an instance.
"""

from pathlib import Path

from pipa_fast.data.folder import Layout
from pipa_fast.data.labels import EVAL_16


def _label(image: Path) -> Path:
    return Path("GT", "LABELS", image.name)


SYNTHIA = Layout(
    name="synthia",
    images="RGB/*.png",
    label_of=_label,
    labels="GT/LABELS/*.png",
    splits={"train": 9400},
    ids={
        3: 0,  # road
        4: 1,  # sidewalk
        2: 2,  # building
        21: 3,  # wall
        5: 4,  # fence
        7: 5,  # pole
        15: 6,  # traffic light
        9: 7,  # traffic sign
        6: 8,  # vegetation
        16: 9,  # terrain
        1: 10,  # sky
        10: 11,  # pedestrian
        17: 12,  # rider
        8: 13,  # car
        18: 14,  # truck
        19: 15,  # bus
        20: 16,  # train
        12: 17,  # motorcycle
        11: 18,  # bicycle
    },
    unscored=frozenset({0, 13, 14, 22}),  # void, parking, road work, lane markings
    sizes=((760, 1280),),
    eval_classes=EVAL_16,
)
