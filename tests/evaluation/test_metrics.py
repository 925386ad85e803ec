# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from pipa_fast.evaluation.metrics import ConfusionMatrix


def random_labels(seed: int, classes: int = 19) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.randint(0, classes, (2, 31, 17), generator=generator)
    truth = torch.randint(0, classes, (2, 31, 17), generator=generator)
    truth[torch.rand(truth.shape, generator=generator) < 0.2] = 255
    keep = torch.rand(truth.shape, generator=generator) < 0.6
    return torch.where(keep & (truth != 255), truth, prediction), truth


def test_agrees_with_torchmetrics_over_updates():
    ours = ConfusionMatrix(19)
    theirs = MulticlassJaccardIndex(19, average="none", ignore_index=255)
    for seed in range(3):
        prediction, truth = random_labels(seed)
        ours.update(prediction.to(torch.uint16), truth.to(torch.uint8))
        theirs.update(prediction, truth)
    torch.testing.assert_close(ours.iou(), theirs.compute().double(), atol=1e-6, rtol=1e-6)
    assert ours.matrix.dtype == torch.int64


def test_absent_classes_are_left_out_of_the_mean():
    confusion = ConfusionMatrix(4)
    confusion.update(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 255]))
    assert confusion.iou().tolist()[:2] == [0.5, 0.5]
    assert all(math.isnan(v) for v in confusion.iou().tolist()[2:])
    assert confusion.miou() == 0.5
    assert confusion.miou((1, 3)) == 0.5
    assert math.isnan(confusion.miou((2, 3))) and math.isnan(confusion.miou(()))


def test_pixels_of_unscored_classes_still_count_as_false_positives():
    confusion = ConfusionMatrix(3)
    confusion.update(torch.tensor([0, 0]), torch.tensor([0, 2]))
    assert confusion.miou((0, 1)) == 0.5


def test_nothing_to_count_is_no_error():
    confusion = ConfusionMatrix(3)
    confusion.update(torch.tensor([0, 1]), torch.tensor([255, 255]))
    confusion.update(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    assert confusion.matrix.sum() == 0 and math.isnan(confusion.miou())


@pytest.mark.parametrize(
    ("prediction", "truth", "word"),
    [([0, 3], [0, 1], "prediction"), ([0, 1], [0, 3], "truth"), ([0, 1], [0, -1], "truth")],
)
def test_labels_out_of_range_are_named(prediction, truth, word):
    with pytest.raises(ValueError, match=f"^{word} must be class ids"):
        ConfusionMatrix(3).update(torch.tensor(prediction), torch.tensor(truth))


def test_there_is_at_least_one_class():
    assert ConfusionMatrix(1).matrix.tolist() == [[0]]
    with pytest.raises(ValueError, match="num_classes must be a positive count; got 0"):
        ConfusionMatrix(0)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="prediction must be of truth's shape"):
        ConfusionMatrix(3).update(torch.zeros(2, 3).long(), torch.zeros(3, 2).long())
