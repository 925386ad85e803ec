# SPDX-License-Identifier: Apache-2.0
"""Which classes a benchmark scores, and the ways in which papers count the same pixels.

Cityscapes scores 19 classes. SYNTHIA labels 16 of them: terrain, truck and train are missing. Older
work also leaves wall, fence and pole out, which makes 13.
"""

from collections.abc import Sequence

from pipa_fast.checks import require
from pipa_fast.data.labels import CLASS_SETS, NUM_CLASSES
from pipa_fast.evaluation.metrics import ConfusionMatrix


def scored_classes(name: str, of_dataset: Sequence[int]) -> tuple[int, ...]:
    """Return the train ids that `name` asks for; "dataset" means the dataset's own.

    Raises:
        ValueError: an unknown name.
    """
    known = ["dataset", *CLASS_SETS]
    require(name in known, "classes", name, f"one of {', '.join(known)}")
    return tuple(of_dataset) if name == "dataset" else CLASS_SETS[name]


def conventions(confusion: ConfusionMatrix, name: str) -> dict[str, float]:
    """Return mIoU [percent] over the class set `name` in each way that papers count it.

    "mean", what this project reports: the mean IoU of the set's classes, where pixels that truly
    are of another of the 19 classes count as wrong if they were predicted as one of the set.
    "others_ignored": pixels of truth outside the set do not count at all, as where labels were
    first mapped to the set. It is never below "mean".
    "rescaled", for 16 classes alone: mIoU over 19 times 19/16, as DAFormer and its successors
    report it, given where all 19 occur. It is "mean" for a network that gets nothing right of the
    three classes that SYNTHIA lacks, and above it for any other.
    """
    require(name in CLASS_SETS, "classes", name, f"one of {', '.join(CLASS_SETS)}")
    classes = CLASS_SETS[name]
    inside = ConfusionMatrix(confusion.num_classes, device=confusion.matrix.device)
    rows = list(classes)
    inside.matrix[rows] = confusion.matrix[rows]
    ways = {"mean": confusion.miou(classes), "others_ignored": inside.miou(classes)}
    if name == "16" and not confusion.iou().isnan().any():
        ways["rescaled"] = confusion.miou() * NUM_CLASSES / len(classes)
    return {way: 100 * value for way, value in ways.items()}
