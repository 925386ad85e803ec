# SPDX-License-Identifier: Apache-2.0
"""Runs side by side as one HTML file that needs no network and no scripts."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from pipa_fast.data.labels import IGNORE_INDEX
from pipa_fast.evaluation.comparison import Group, notes, spread_text
from pipa_fast.evaluation.panels import colorize
from pipa_fast.evaluation.report_sections import document, legend, strip, swatch, training_section
from pipa_fast.evaluation.runs import classes_of

MOST = 8  # groups, each with a colour of its own
# Okabe and Ito's colours, which most eyes tell apart; darker ones on light pages, and last a grey.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b3589a", "#b8860b", "#56b4e9", "#7a3b2e", "#76818d")
STYLE = "".join(
    f".g{i} {{ --own: {colour}; }} .line.g{i} {{ stroke: {colour}; }} "
    f".end.g{i}, .value.g{i} {{ fill: {colour}; }}\n"
    for i, colour in enumerate(COLOURS)
)
STYLE += """
.keys i[class^="g"] { background: var(--own); }
.tile[class*=" g"] { border-left: 5px solid var(--own); }
.groups td { padding-top: 1px; padding-bottom: 1px; }
.groups tbody + tbody > tr:first-child > * { border-top: 1px solid var(--line); padding-top: 6px; }
.groups tbody > tr:last-child > * { padding-bottom: 6px; }
.groups .track { position: relative; overflow: visible; }
.groups .bar { height: 9px; background: var(--own); border-radius: 0 3px 3px 0; }
.groups .spread { position: absolute; top: 3px; height: 3px; background: var(--ink); opacity: .75; }
"""


class Pictures(NamedTuple):
    """One validation image and what each run's network makes of it."""

    name: str
    image: np.ndarray  # [H', W', 3] uint8
    truth: np.ndarray  # [H, W] uint8 train ids
    predictions: dict[str, np.ndarray]  # [H, W] uint8 train ids, by the run's name


def page(groups: Sequence[Group], pictures: Sequence[Pictures] = ()) -> str:
    """Return the whole page."""
    title = f"{sum(len(group.runs) for group in groups)} runs side by side"
    names = groups[0].runs[0].names
    shown = _pictures(pictures, names)
    parts = [_headline(title, groups), shown, _classes(groups, names), _curves(groups)]
    return document(title, parts, style=STYLE)


def _headline(title: str, groups: Sequence[Group]) -> str:
    tiles = []
    for i, group in enumerate(groups):
        mean, spread = group.miou()
        seeds = ", ".join(str(run.seed) for run in group.runs)
        value = f"{mean:.1f}" + (f' <small class="soft">± {spread:.1f}</small>' if spread else "")
        first = group.runs[0].iteration
        when = "by evaluate" if first is None else f"step {first:,}"
        text = f"{group.name}: mIoU [%], {when}, seed {seeds}"
        tiles.append(f'<div class="tile g{i}"><b>{value}</b><span class="soft">{escape(text)}')
    lines = notes([run for group in groups for run in group.runs])
    told = "".join(f'<p class="note">{escape(line)}</p>' for line in lines)
    shown = "".join(f"{tile}</span></div>" for tile in tiles)
    return (
        f'<header><h1>{escape(title)}</h1><p class="soft">Runs that differ in their seed alone are '
        "one group; ± is the standard deviation over its seeds.</p>"
        f'<div class="tiles">{shown}</div>{told}</header>'
    )


def _keys(groups: Sequence[Group]) -> str:
    names = "".join(
        f'<span><i class="g{i}"></i>{escape(group.name)}</span>' for i, group in enumerate(groups)
    )
    return f'<div class="keys">{names}</div>'


def _classes(groups: Sequence[Group], names: Sequence[str]) -> str:
    """Return a bar for each class and group, with its spread over seeds."""
    bodies = []
    runs = [run for group in groups for run in group.runs]
    for name in [*classes_of(runs), "mean"]:
        rows = []
        for i, group in enumerate(groups):
            found = group.miou() if name == "mean" else group.iou(name)
            colour = "" if name == "mean" else swatch(name, names)
            head = "" if rows else f"{colour}{escape(name)}"
            rows.append(f"<tr><th>{head}</th>{_bar(i, found)}</tr>")
        bodies.append(f"<tbody>{''.join(rows)}</tbody>")
    several = any(len(group.runs) > 1 for group in groups)
    note = '<p class="note">The dark line is ± one standard deviation.</p>' if several else ""
    table = f'<table class="iou groups">{"".join(bodies)}</table>'
    return f"<section><h2>IoU per class [%]</h2>{note}{_keys(groups)}{table}</section>"


def _bar(i: int, found: tuple[float, float] | None) -> str:
    if found is None:
        return '<td></td><td class="number">\N{EN DASH}</td>'
    mean, spread = found
    low, high = max(0.0, mean - spread), min(100.0, mean + spread)
    line = f'<i class="spread" style="left:{low:.1f}%;width:{high - low:.1f}%"></i>'
    bar = f'<div class="bar g{i}" style="width:{mean:.1f}%"></div>{line if spread else ""}'
    return f'<td><div class="track">{bar}</div></td><td class="number">{spread_text(found)}</td>'


def _curves(groups: Sequence[Group]) -> str:
    """Return mIoU and losses of every run over training."""
    drawn = [(run, f"g{i}") for i, group in enumerate(groups) for run in group.runs]
    terms = dict.fromkeys(term for run, _ in drawn for term in run.losses())
    note = "Over training steps, a line for each run. Losses are before their weights."
    return training_section(drawn, terms, note, _keys(groups))


def _pictures(pictures: Sequence[Pictures], names: Sequence[str]) -> str:
    if not pictures:
        return ""
    parts, classes = [], set()
    for shown in pictures:
        maps = {"truth": shown.truth, **shown.predictions}
        classes |= set().union(*(np.unique(m).tolist() for m in maps.values())) - {IGNORE_INDEX}
        colours = [(name, colorize(m)) for name, m in maps.items()]
        parts.append(strip(shown.name, "", [("image", shown.image), *colours]))
    known = sorted(c for c in classes if c < len(names))
    return (
        "<section><h2>The same images</h2>"
        '<p class="note">Validation images at even distances, not picked.</p>'
        f"{''.join(parts)}{legend(known, names, unlabelled=True)}</section>"
    )
