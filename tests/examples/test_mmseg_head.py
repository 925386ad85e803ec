# SPDX-License-Identifier: Apache-2.0
"""The head of mmsegmentation's kind, with the stand-in where mmseg is missing."""

import ast
import re
from types import SimpleNamespace

import torch

from tests.examples.load import load


def built(example, **changes):
    """The head that the docstring's config describes, with `changes`."""
    text = re.search(r"model = (dict\(.*?\)\))\n\n", example.__doc__, re.DOTALL).group(1)
    call = ast.parse(text, mode="eval").body.keywords[0].value
    settings = {
        k.arg: {a.arg: ast.literal_eval(a.value) for a in k.value.keywords}
        if isinstance(k.value, ast.Call)
        else ast.literal_eval(k.value)
        for k in call.keywords
    }
    return example.MODELS.build(settings | {"ignore_index": 255} | changes)


def test_config_builds_a_head_and_both_losses_train_it():
    example = load("mmseg_head")
    head = built(example, in_channels=8, channels=16, in_index=1).train()
    inputs = [torch.randn(2, 3, 4, 4), torch.randn(2, 8, 16, 32)]
    truth = torch.randint(0, 4, (2, 1, 64, 128))
    samples = [SimpleNamespace(gt_sem_seg=SimpleNamespace(data=t)) for t in truth]
    losses = head.loss(inputs, samples, None)
    assert {"loss_ce", "loss_contrast"} <= set(losses)
    losses["loss_contrast"].backward()
    assert float(head.projection.weight.grad.abs().sum()) > 0
    assert float(head.features[0].weight.grad.abs().sum()) > 0
    assert head.conv_seg.weight.grad is None
    assert head.eval()(inputs).shape == (2, 19, 16, 32)


def test_weight_scales_the_contrast():
    example = load("mmseg_head")
    head = built(example, contrast_weight=0.5, in_channels=8, channels=16).train()
    assert head.contrast_weight == 0.5 and head.contrast.num_anchors == 1024


def test_losses_fall():
    history = load("mmseg_head").main(["--steps", "15"])
    assert history[-1]["loss_ce"] < history[0]["loss_ce"]
    assert history[-1]["loss_contrast"] < history[0]["loss_contrast"]
