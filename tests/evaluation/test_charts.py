# SPDX-License-Identifier: Apache-2.0
import itertools
import math
import xml.etree.ElementTree as ET

import pytest
import torch

from pipa_fast.data.labels import PALETTE
from pipa_fast.evaluation.charts import MAX_POINTS, Series, line_chart, scatter, ticks
from pipa_fast.evaluation.embedding import Projection


def points(svg: str) -> list[list[tuple[float, float]]]:
    lines = ET.fromstring(svg).iter("polyline")
    return [[tuple(map(float, p.split(","))) for p in e.get("points", "").split()] for e in lines]


def test_lines_stay_inside_and_rise_with_their_values():
    svg = line_chart([Series(x=[0, 500, 1000], y=[0, 1, 2])], label="a & b")
    (line,) = points(svg)
    assert line[0] == (44, 184) and line[2] == (346, 16)
    assert line[1][0] == pytest.approx((44 + 346) / 2) and line[1][1] == pytest.approx(100)


@pytest.mark.parametrize(
    "y",
    [[], [math.nan] * 3, [0.0] * 3, [math.nan, 1, 2], [1, math.nan], [5], [1e-7, 2e-7]],
)
def test_odd_values_draw_something_well_formed(y):
    svg = line_chart([Series(x=list(range(len(y))), y=y)], label="odd", end_values=True)
    ET.fromstring(svg)
    assert "nan" not in svg


def test_long_lines_are_thinned_to_means():
    svg = line_chart([Series(x=list(range(5000)), y=[0, 2] * 2500)], label="long")
    (line,) = points(svg)
    assert len(line) == MAX_POINTS and len({y for _, y in line}) <= 3


def test_close_end_values_do_not_touch():
    series = [Series(x=[0, 1], y=[0, v]) for v in (50.0, 50.5, 51)]
    texts = [e for e in ET.fromstring(line_chart(series, label="", end_values=True)).iter("text")]
    places = sorted(float(e.get("y", 0)) for e in texts if e.get("class", "").startswith("value"))
    assert len(places) == 3 and all(b - a >= 13 for a, b in itertools.pairwise(places))


@pytest.mark.parametrize(
    ("top", "expected"), [(60, [0, 15, 30, 45, 60]), (1, [0, 0.2, 0.4, 0.6, 0.8, 1])]
)
def test_ticks_are_round(top, expected):
    assert ticks(top) == pytest.approx(expected)


def test_scatter_draws_every_point_in_its_classes_colour():
    view = Projection(torch.randn(9, 2), torch.tensor([0] * 6 + [13] * 3), 0.5, 0.5)
    paths = list(ET.fromstring(scatter(view, label="")).iter("path"))
    assert [p.get("d", "").count("M") for p in paths] == [6, 3]
    assert [p.get("stroke") for p in paths] == [
        "#{:02x}{:02x}{:02x}".format(*PALETTE[c]) for c in (0, 13)
    ]
