# SPDX-License-Identifier: Apache-2.0
"""Mapillary Vistas 1.2 (Neuhold et al., ICCV 2017): SPLIT/images/NAME.jpg, SPLIT/labels/NAME.png.

Splits are named training and validation on disk. The 66 classes are mapped to Cityscapes' as HRDA's
evaluation does.
"""

from pathlib import Path

from pipa_fast.data.folder import Layout

_IDS = {
    13: 0,  # road
    24: 0,  # lane marking
    41: 0,  # manhole
    2: 1,  # curb
    15: 1,  # sidewalk
    17: 2,  # building
    6: 3,  # wall
    3: 4,  # fence
    45: 5,  # pole
    47: 5,  # utility pole
    48: 6,  # traffic light
    50: 7,  # traffic sign, front
    30: 8,  # vegetation
    29: 9,  # terrain
    27: 10,  # sky
    19: 11,  # person
    20: 12,  # bicyclist
    21: 12,  # motorcyclist
    22: 12,  # other rider
    55: 13,  # car
    61: 14,  # truck
    54: 15,  # bus
    58: 16,  # on rails
    57: 17,  # motorcycle
    52: 18,  # bicycle
}


def _label(image: Path) -> Path:
    return Path(image.parts[0], "labels", f"{image.stem}.png")


MAPILLARY = Layout(
    name="mapillary",
    images="{split}*/images/*.jpg",  # training, validation
    label_of=_label,
    labels="{split}*/labels/*.png",
    splits={"train": 18000, "val": 2000},
    ids=_IDS,
    unscored=frozenset(range(66)) - _IDS.keys(),
    sizes=None,
)
