# SPDX-License-Identifier: Apache-2.0
"""The precision tables: what they hold, and that they fail where ours is worse than it may be."""

import math
from dataclasses import replace

import pytest
import torch

from bench import precision
from bench.precision import Errors, Line, compare, document, measure
from bench.precision_cases import CASES

CPU = torch.device("cpu")


def case(title: str, op: str = "pixel_contrast", n: int = 96):
    return replace(next(c for c in CASES if c.title == title and c.op == op), n=n)


@pytest.mark.parametrize("op", ["pixel_contrast", "patch_consistency"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_usual_rows_are_within_the_bar(op, dtype):
    line = measure(case("temperature 0.1", op, n=200), dtype, CPU)
    assert line.too_large() == []
    assert {"reference"} <= line.ours.keys()
    assert 0 < line.eager.gradient < (1e-5 if dtype == torch.float32 else 1e-2)
    assert all(errors.angle < 1e-4 for errors in line.ours.values())


def test_class_of_one_breaks_eager_alone():
    line = measure(case("a class of one"), torch.float32, CPU)
    assert not line.eager.finite and line.too_large() == []
    text = document([line], CPU, "command")
    assert '- pixel_contrast, denominator="negatives": a class of one' in text
    assert "every one is within the bar" in text


def test_worse_than_eager_is_above_the_bar():
    eager = Errors(1e-7, 1e-6, 0.0, 1e-8)
    line = Line(case("temperature 0.1"), torch.float32, eager, {"cpu": eager})
    assert line.too_large() == []
    for field, value in (("loss", 3e-6), ("gradient", 1e-5), ("bias", -1e-5), ("loss", math.nan)):
        worse = replace(line, ours={"cpu": eager._replace(**{field: value})})
        assert worse.too_large(), field


def test_command_exits_with_one_above_the_bar(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(precision, "CASES", [case("temperature 0.1"), case("one class only")])
    words = ["--output", str(tmp_path / "precision.md"), "--dtypes", "float32", "--device", "cpu"]
    assert precision.main(words) == 0
    assert "| temperature 0.1 | float32 |" in (tmp_path / "precision.md").read_text()
    monkeypatch.setattr(precision, "TOLERANCE", {torch.float32: (-1.0, -1.0, -1.0)})
    assert precision.main(words) == 1
    assert "loss error" in capsys.readouterr().err


def test_errors_are_what_they_say():
    g = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    true = (torch.tensor(2.0, dtype=torch.float64), g)
    longer = compare((true[0] * 1.1, g * 1.01), true, 0.1)
    assert longer.loss == pytest.approx(0.1)
    assert longer.gradient == pytest.approx(0.01) and longer.bias == pytest.approx(0.01)
    assert longer.angle == pytest.approx(0, abs=1e-12)
    turned = compare((true[0], g.flip(1)), true, 0.1)
    assert turned.angle == pytest.approx(1) and turned.bias == pytest.approx(-1)


def test_every_case_can_be_made():
    for one in CASES:
        x, arguments = replace(one, n=48).make(CPU)
        torch.testing.assert_close(x.norm(dim=1), torch.ones(48))
        assert not (arguments.get("labels", arguments.get("bank_labels")) == 255).any()
