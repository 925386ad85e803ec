# SPDX-License-Identifier: Apache-2.0
"""Charts as inline SVG in the page's own colours, so that they follow light and dark mode."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape

import numpy as np

from pipa_fast.data.labels import COLOURS
from pipa_fast.evaluation.embedding import Projection

LEFT, RIGHT, TOP, BOTTOM = 44, 14, 16, 26
MAX_POINTS = 120


@dataclass(kw_only=True, slots=True, frozen=True)
class Series:
    """One line of a chart."""

    x: Sequence[float]
    y: Sequence[float]
    role: str = "run"
    """Class of the stylesheet: "run" or "base"."""


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    width: int = 360,
    height: int = 210,
    end_values: bool = False,
) -> str:
    """Return an SVG of `series` over iterations; `label` is what a screen reader says.

    The y axis starts at 0. `end_values` writes each line's last value beside its end.
    """
    shown = [s if end_values else _thin(s) for s in series if len(s.x)]
    top = _nice_ceiling(max((v for s in shown for v in s.y if math.isfinite(v)), default=1.0))
    end = max((v for s in shown for v in s.x), default=1.0) or 1.0

    def x(value: float) -> float:
        return round(LEFT + (width - LEFT - RIGHT) * value / end, 1)

    def y(value: float) -> float:
        return round(height - BOTTOM - (height - TOP - BOTTOM) * value / top, 1)

    parts = [_open("chart", width, height, label)]
    for tick in ticks(top):
        place = y(tick)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{place}" y2="{place}"/>'
        )
        parts.append(_text("tick", LEFT - 7, place + 3.5, f"{tick:g}", "end"))
    for tick in ticks(end, at_most=4):
        parts.append(_text("tick", x(tick), height - 8, _short(tick), "middle"))
    for s in shown:
        points = [(x(a), y(b)) for a, b in zip(s.x, s.y, strict=True) if math.isfinite(b)]
        path = " ".join(f"{a},{b}" for a, b in points)
        parts.append(f'<polyline class="line {escape(s.role)}" points="{path}"/>')
        if points:
            a, b = points[-1]
            parts.append(f'<circle class="end {escape(s.role)}" cx="{a}" cy="{b}" r="3"/>')
    if end_values:
        parts += _end_values(shown, y, width - RIGHT)
    return "".join(parts) + "</svg>"


def _end_values(shown: Sequence[Series], y: Callable[[float], float], right: int) -> list[str]:
    """Return the last values' texts, moved apart where they would touch."""
    known = [s for s in shown if math.isfinite(s.y[-1])]
    ends = sorted(((y(s.y[-1]), s) for s in known), key=lambda pair: pair[0])
    texts, previous = [], -math.inf
    for place, s in ends:
        baseline = max(place - 7, previous + 13, 10)
        previous = baseline
        texts.append(_text(f"value {s.role}", right, round(baseline, 1), f"{s.y[-1]:.1f}", "end"))
    return texts


def scatter(projection: Projection, *, label: str, size: int = 320) -> str:
    """Return an SVG of points in their class's colour, both axes to one scale."""
    points, labels = projection.points.numpy(), projection.labels.numpy()
    low, high = points.min(0), points.max(0)
    scale = (size - 24) / max(float((high - low).max()), 1e-12)
    placed = (points - (low + high) / 2) * scale + size / 2
    parts = [_open("scatter", size, size, label)]
    classes, counts = np.unique(labels, return_counts=True)
    for c in classes[np.argsort(-counts)]:  # the rare on top
        # A zero-length stroke with round caps is a dot: a third of a circle element's bytes.
        path = "".join(f"M{a:.0f} {size - b:.0f}h0" for a, b in placed[labels == c])
        parts.append(f'<path d="{path}" stroke="#{COLOURS[c].tobytes().hex()}"/>')
    return "".join(parts) + "</svg>"


def _open(kind: str, width: int, height: int, label: str) -> str:
    return (
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(label)}">'
    )


def _text(kind: str, x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def ticks(top: float, at_most: int = 5) -> list[float]:
    """Return round values from 0 to `top`, `at_most` intervals."""
    step = _nice_ceiling(top / at_most)
    return [step * i for i in range(int(top / step + 1e-9) + 1)]


def _nice_ceiling(value: float) -> float:
    """Return the smallest round number that is not below `value`."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    steps = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
    return next(s for s in steps if s >= value / power - 1e-9) * power


def _short(iteration: float) -> str:
    """Return an iteration as an axis says it: 500, 40k."""
    return f"{iteration / 1000:g}k" if iteration >= 1000 else f"{iteration:g}"


def _thin(series: Series) -> Series:
    """Return `series` as means of neighbours where it has more points than can be told apart."""
    if len(series.x) <= MAX_POINTS:
        return series
    bins = np.array_split(np.arange(len(series.x)), MAX_POINTS)
    xs, ys = np.asarray(series.x, float), np.asarray(series.y, float)
    return replace(
        series, x=[float(xs[b].mean()) for b in bins], y=[float(ys[b].mean()) for b in bins]
    )
