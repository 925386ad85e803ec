# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from pipa_fast.data.labels import CLASSES
from pipa_fast.evaluation.classes import CLASS_SETS, conventions, scored_classes
from pipa_fast.evaluation.metrics import ConfusionMatrix


def random_counts() -> tuple[torch.Tensor, torch.Tensor, ConfusionMatrix]:
    """Predictions, truth and their counts; every class occurs, and about half is right."""
    generator = torch.Generator().manual_seed(5)
    truth = torch.randint(0, 19, (4, 50, 40), generator=generator)
    guess = torch.randint(0, 19, truth.shape, generator=generator)
    right = torch.rand(truth.shape, generator=generator) < 0.5
    prediction = torch.where(right, truth, guess)
    truth[:, :3] = 255
    confusion = ConfusionMatrix(19)
    confusion.update(prediction, truth)
    return prediction, truth, confusion


def test_the_sets_leave_out_what_synthia_papers_leave_out():
    def missing(name: str) -> set[str]:
        return set(CLASSES) - {CLASSES[c] for c in CLASS_SETS[name]}

    assert missing("19") == set()
    assert missing("16") == {"terrain", "truck", "train"}
    assert missing("13") == missing("16") | {"wall", "fence", "pole"}
    assert [len(CLASS_SETS[name]) for name in ("19", "16", "13")] == [19, 16, 13]


def test_the_dataset_may_have_its_own():
    assert scored_classes("dataset", [0, 13]) == (0, 13)
    assert scored_classes("13", [0, 13]) == CLASS_SETS["13"]
    with pytest.raises(ValueError, match="classes must be one of dataset, 19, 16, 13; got '14'"):
        scored_classes("14", [0])


@pytest.mark.parametrize("name", ["19", "16", "13"])
def test_means_agree_with_torchmetrics(name):
    prediction, truth, confusion = random_counts()
    chosen = list(CLASS_SETS[name])
    theirs = MulticlassJaccardIndex(19, average="none", ignore_index=255)
    ways = conventions(confusion, name)
    assert ways["mean"] == pytest.approx(100 * float(theirs(prediction, truth)[chosen].mean()))
    only = torch.where(torch.isin(truth, torch.tensor(chosen)), truth, 255)
    expected = 100 * float(theirs(prediction, only)[chosen].mean())
    assert ways["others_ignored"] == pytest.approx(expected)


def test_a_confusion_matrix_worked_by_hand():
    """Road 3 of 4 right, one taken for a truck; terrain 2, one taken for road, one for terrain."""
    confusion = ConfusionMatrix(19)
    road, terrain, truck = 0, 9, 14
    prediction = torch.tensor([road, road, road, truck, road, terrain])
    confusion.update(prediction, torch.tensor([road, road, road, road, terrain, terrain]))
    ways = conventions(confusion, "16")
    assert ways["mean"] == pytest.approx(100 * 3 / 5)  # 3 hits, 1 missed, 1 terrain too much
    assert ways["others_ignored"] == pytest.approx(100 * 3 / 4)  # the terrain is not looked at
    assert set(ways) == {"mean", "others_ignored"}  # 19/16 means nothing where 19 do not occur
    others = torch.tensor([c for c in range(19) if c not in (road, terrain, truck)])
    confusion.update(others, others)  # 16 classes more, each one pixel, each right
    ways = conventions(confusion, "16")
    assert ways["mean"] == pytest.approx(100 * (15 + 3 / 5) / 16)
    # over 19: 16 of them 1, road 3/5, terrain 1/2, truck 0
    assert ways["rescaled"] == pytest.approx(100 * (16 + 3 / 5 + 1 / 2 + 0) / 16)
    assert set(conventions(confusion, "13")) == {"mean", "others_ignored"}


def test_rescaling_is_the_mean_for_a_network_that_never_saw_the_missing_classes():
    generator = torch.Generator().manual_seed(7)
    truth = torch.arange(19).repeat(40)
    known = torch.tensor(CLASS_SETS["16"])
    guess = known[torch.randint(0, 16, truth.shape, generator=generator)]
    right = torch.isin(truth, known) & (torch.rand(truth.shape, generator=generator) < 0.7)
    confusion = ConfusionMatrix(19)
    confusion.update(torch.where(right, truth, guess), truth)
    ways = conventions(confusion, "16")
    assert ways["rescaled"] == pytest.approx(ways["mean"])
    assert ways["others_ignored"] > ways["mean"] + 1


def test_counts_are_left_as_they_were():
    _, _, confusion = random_counts()
    before = confusion.matrix.clone()
    conventions(confusion, "13")
    assert torch.equal(confusion.matrix, before)
