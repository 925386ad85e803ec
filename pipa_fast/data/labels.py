# SPDX-License-Identifier: Apache-2.0
"""Cityscapes' classes: train ids, names, colours, and the label ids that files hold.

The tables follow the definition that the Cityscapes benchmark publishes: 34 label ids, of which
19 are scored. GTA5's label images are palette PNGs with the same ids and colours (and one more,
34, for licence plates).
"""

import numpy as np

IGNORE_INDEX = 255

# label id, name, colour, by train id
_TRAIN_CLASSES: tuple[tuple[int, str, tuple[int, int, int]], ...] = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)

# Label ids without a train id that have a colour of their own; the others are black.
_OTHER_COLOURS: dict[int, tuple[int, int, int]] = {
    5: (111, 74, 0),  # dynamic
    6: (81, 0, 81),  # ground
    9: (250, 170, 160),  # parking
    10: (230, 150, 140),  # rail track
    14: (180, 165, 180),  # guard rail
    15: (150, 100, 100),  # bridge
    16: (150, 120, 90),  # tunnel
    18: (153, 153, 153),  # pole group
    29: (0, 0, 90),  # caravan
    30: (0, 0, 110),  # trailer
    34: (0, 0, 142),  # licence plate (GTA5 only)
}

CLASSES: tuple[str, ...] = tuple(name for _, name, _ in _TRAIN_CLASSES)
NUM_CLASSES = len(CLASSES)

PALETTE: np.ndarray = np.array([colour for _, _, colour in _TRAIN_CLASSES], dtype=np.uint8)
"""[19, 3] uint8, RGB by train id."""

# Pascal VOC's colours: bit 3 k + c of a number is bit 7 - k of its channel c. Counted from 5 on, so
# that none is one of Cityscapes'.
_BITS = np.arange(5, 5 + 256)[:, None, None] >> np.arange(9).reshape(3, 3) & 1
COLOURS: np.ndarray = (_BITS << np.array([[7], [6], [5]])).sum(1).astype(np.uint8)
"""[256, 3] uint8, RGB by train id: Cityscapes', others above them for datasets of one's own, and
black for what is ignored."""
COLOURS[:NUM_CLASSES] = PALETTE
COLOURS[IGNORE_INDEX] = 0

SCORED_LABEL_IDS: dict[int, int] = {
    label_id: t for t, (label_id, _, _) in enumerate(_TRAIN_CLASSES)
}
"""Train id by label id, of the label ids that Cityscapes scores."""

UNSCORED_LABEL_IDS = frozenset(range(34)) - SCORED_LABEL_IDS.keys()
"""Label ids that Cityscapes names and does not score."""

TRAIN_ID_TO_LABEL_ID: np.ndarray = np.zeros(256, dtype=np.uint8)
"""[256] uint8, label id by train id; 0 (unlabelled) for everything that is not a train id."""
TRAIN_ID_TO_LABEL_ID[:NUM_CLASSES] = list(SCORED_LABEL_IDS)

EVAL_16: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18)
"""Train ids that SYNTHIA shares with Cityscapes: without terrain, truck and train."""
EVAL_13: tuple[int, ...] = tuple(c for c in EVAL_16 if c not in (3, 4, 5))
"""Of those, the ones that older work scores: without wall, fence and pole."""

CLASS_SETS: dict[str, tuple[int, ...]] = {
    "19": tuple(range(NUM_CLASSES)),
    "16": EVAL_16,
    "13": EVAL_13,
}
"""What the field's mean IoU is over, by the number of classes, as train ids."""

GTA5_PALETTE: np.ndarray = np.zeros((256, 3), dtype=np.uint8)
"""[256, 3] uint8, RGB by label id, as GTA5's label PNGs carry it."""
GTA5_PALETTE[list(_OTHER_COLOURS)] = list(_OTHER_COLOURS.values())
GTA5_PALETTE[list(SCORED_LABEL_IDS)] = PALETTE


def to_label_ids(train_ids: np.ndarray) -> np.ndarray:
    """Map train ids [...] uint8 to label ids [...] uint8; 255 becomes 0 (unlabelled)."""
    return TRAIN_ID_TO_LABEL_ID[np.asarray(train_ids, dtype=np.uint8)]


def count_pixels(label: np.ndarray) -> np.ndarray:
    """Return the pixels of each train id [255] int64 of a label of any shape; 255 isn't counted."""
    return np.bincount(label.ravel(), minlength=IGNORE_INDEX)[:IGNORE_INDEX]
