# SPDX-License-Identifier: Apache-2.0
import torch
import torch.nn.functional as F

from pipa_fast.models import Outputs, Window
from pipa_fast.uda.objectives.cross_entropy import CrossEntropy
from pipa_fast.uda.outputs import StepOutputs


def outputs_of(logits, labels, weights=None, **student):
    made = Outputs(logits=logits, pixel=None, patch=None, **student)
    return StepOutputs(None, made, labels, weights, None, torch.tensor(0), None)  # type: ignore[arg-type]


def test_the_window_has_its_share_under_its_own_labels_and_weights():
    torch.manual_seed(0)
    logits, detail = torch.randn(2, 5, 16, 16), torch.randn(2, 5, 8, 8)
    labels, weights = torch.randint(0, 5, (2, 16, 16)), torch.rand(2, 16, 16)
    window = Window(4, 8, 12, 16)
    term = CrossEntropy("mixed", 1.0, detail_share=0.1)
    value = term(outputs_of(logits, labels, weights, detail=detail, window=window))
    whole = (F.cross_entropy(logits, labels, reduction="none") * weights).mean()
    inside = F.cross_entropy(detail, labels[:, 4:12, 8:16], reduction="none")
    part = (inside * weights[:, 4:12, 8:16]).mean()
    torch.testing.assert_close(value, 0.9 * whole + 0.1 * part)


def test_all_divides_by_every_pixel_and_valid_by_the_labelled_ones():
    logits, labels = torch.randn(1, 5, 4, 4), torch.full((1, 4, 4), 255)
    labels[0, 0] = 2
    own = F.cross_entropy(logits, labels, ignore_index=255)
    for average, expected in (("all", own / 4), ("valid", own)):
        value = CrossEntropy("source", 1.0, average=average)(outputs_of(logits, labels))
        torch.testing.assert_close(value, expected)
