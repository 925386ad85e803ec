# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from pipa_fast.evaluation.protocol import autocast_dtype, in_words, precision_on, protocol_of
from pipa_fast.training.config import EvaluationConfig


@pytest.mark.parametrize(
    ("precision", "device", "native", "name"),
    [
        ("auto", "cuda", True, "bf16"),
        ("auto", "cuda", False, "fp16"),
        ("auto", "cpu", True, "bf16"),
        ("auto", "cpu", False, "fp32"),
        ("fp16", "cpu", True, "fp16"),
        ("fp32", "cuda", True, "fp32"),
    ],
)
def test_auto_is_what_the_device_computes_in(monkeypatch, precision, device, native, name):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0) if native else (7, 5))
    dtypes = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    assert precision_on(precision, torch.device(device)) == name
    assert autocast_dtype(precision, torch.device(device)) is dtypes[name]


def test_a_protocol_is_told_in_words():
    seen = EvaluationConfig(size=(512, 1024), crop=(30, 60), flip=True)
    told = "images fitted into 512 x 1024, in windows of 30 x 60, 20 x 40 apart, mirrored too, bf16"
    assert in_words(protocol_of(seen.view, "bf16")) == told
    whole = protocol_of(EvaluationConfig().view, "auto")
    assert in_words(whole) == "images at their own size, seen whole, the device's precision"


def test_records_of_earlier_versions_are_told_too():
    assert in_words({"miou": 3.0}) == "images at their own size, seen whole, fp32"
