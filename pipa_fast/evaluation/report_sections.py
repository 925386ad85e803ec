# SPDX-License-Identifier: Apache-2.0
"""The report's parts: each a function from what is known to HTML, empty where nothing is."""

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from pipa_fast.data.labels import COLOURS, IGNORE_INDEX
from pipa_fast.evaluation.charts import Series, line_chart, scatter
from pipa_fast.evaluation.embedding import Projection
from pipa_fast.evaluation.panels import Panel, present_classes, resize_to_width
from pipa_fast.evaluation.report_style import STYLE
from pipa_fast.evaluation.runs import Run, classes_of, flatten

MAX_WIDTH = 512  # of a picture [pixels]: larger ones are reduced, which keeps the file small
MOST_COLUMNS = 6  # of pictures side by side on a wide page
ABSENT = "\N{EN DASH}"


def document(title: str, parts: Iterable[str], style: str = "") -> str:
    """Return the whole page; `style` comes after the stylesheet."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head>\n"
        "<body><main>\n" + "\n".join(part for part in parts if part) + "\n</main></body></html>\n"
    )


def headline(run: Run, base: Run | None) -> str:
    """Return the recipe's name and the numbers that matter most."""
    data, model = run.config.get("data") or {}, run.config.get("model") or {}
    route = " → ".join(str(data[k]) for k in ("source", "target") if data.get(k))
    network = " + ".join(str(model[k]) for k in ("encoder", "head") if model.get(k))
    facts = [route, network, f"{run.iteration:,} steps", f"seed {run.seed}"]
    tiles = [_tile(f"{run.miou:.1f}", f"mIoU over {len(run.iou)} classes [%]", "tile main")]
    if base is not None:
        delta = run.miou - base.miou
        text = f"points over source-only ({base.miou:.1f})"
        tiles.append(_tile(_signed(delta), text, value_class=_tone(delta)))
        both = run.iou.keys() & base.iou.keys()
        better = sum(run.iou[c] - base.iou[c] >= 0.05 for c in both)
        tiles.append(_tile(f"{better} of {len(both)}", "classes better than source-only"))
    if run.iou:
        worst = min(run.iou, key=lambda c: run.iou[c])
        tiles.append(_tile(f"{run.iou[worst]:.1f}", f"IoU of the hardest class, {worst} [%]"))
    speed = [r.get("images_per_second") for r in run.history if r.get("kind") == "train"]
    speed = [s for s in speed if s is not None and math.isfinite(s)]
    if speed:
        tiles.append(_tile(f"{np.median(speed):.0f}", "training images a second, median"))
    return (
        f'<header><h1>{escape(run.recipe)}</h1><p class="soft">'
        + " · ".join(escape(fact) for fact in facts if fact)
        + f'</p><div class="tiles">{"".join(tiles)}</div></header>'
    )


def _tile(value: str, text: str, kind: str = "tile", value_class: str = "") -> str:
    number = f'<b class="{value_class}">{value}</b>'
    return f'<div class="{kind}">{number}<span class="soft">{escape(text)}</span></div>'


def _signed(value: float) -> str:
    # The minus is the one as wide as the plus.
    rounded = round(value, 1)
    return f"{rounded:+.1f}".replace("-", "\N{MINUS SIGN}") if rounded else "0.0"


def _tone(delta: float) -> str:
    return "good" if delta >= 0.05 else "bad" if delta <= -0.05 else ""


def panels_section(panels: Sequence[Panel], names: Sequence[str]) -> str:
    """Return the pictures: one strip per validation image."""
    if not panels:
        return ""
    return (
        "<section><h2>What it sees</h2>"
        '<p class="note">Validation images at even distances, not picked. Confidence is the '
        f"{panels[0].confidence_of}'s probability of its most likely class: 0"
        '<span class="ramp"></span>1. Error: <span class="ink" style="background:#e23030"></span>'
        'wrong, <span class="ink" style="background:#282828"></span>not labelled.</p>'
        + "".join(_panel(panel) for panel in panels)
        + legend(present_classes(panels), names, unlabelled=True)
        + "</section>"
    )


def _panel(panel: Panel) -> str:
    right = panel.accuracy(panel.prediction)
    text = f"{100 * right:.1f} % of labelled pixels right"
    if panel.baseline is not None:
        text = f"{text}, source-only {100 * panel.accuracy(panel.baseline):.1f} %"
    return strip(panel.name, f'<span class="soft">{text}</span>', panel.columns())


def strip(name: str, note: str, pictures: Sequence[tuple[str, np.ndarray]]) -> str:
    """Return pictures [H, W, 3] uint8 with their captions in a row, below a name and a note."""
    figures = "".join(
        f'<figure><img class="{"photo" if caption == "image" else "map"}" '
        f'alt="{escape(name)}: {escape(caption)}" src="{png(picture)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, picture in pictures
    )
    return (
        f'<div class="panel"><header><h3>{escape(name)}</h3>{note}</header>'
        f'<div class="strip" style="--columns:{min(len(pictures), MOST_COLUMNS)}">{figures}</div>'
        "</div>"
    )


def png(picture: np.ndarray) -> str:
    """Return a picture [H, W, 3] uint8 as a data URL."""
    if picture.shape[1] > MAX_WIDTH:
        picture = resize_to_width(picture, MAX_WIDTH)
    image = Image.fromarray(picture)
    if len(image.getcolors(256) or []):  # flat colours: a palette is smaller and exact
        image = image.quantize(256, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def legend(classes: Sequence[int], names: Sequence[str], *, unlabelled: bool) -> str:
    """Return the colours of train ids `classes`, and of pixels without one if asked."""
    entries = "".join(f"<li>{swatch(names[c], names)}{escape(names[c])}</li>" for c in classes)
    last = f"<li>{swatch(None, names)}not labelled</li>" if unlabelled else ""
    return f'<ul class="legend">{entries}{last}</ul>'


def swatch(name: str | None, names: Sequence[str]) -> str:
    """Return a class's colour as a small square; black for what is none."""
    colour = COLOURS[names.index(name) if name in names else IGNORE_INDEX].tobytes().hex()
    return f'<span class="swatch" style="background:#{colour}"></span>'


def iou_section(run: Run, base: Run | None) -> str:
    """Return IoU per class as bars, the source-only run's below each."""
    if not run.iou:
        return ""
    before = {} if base is None else base.iou
    rows = [
        _iou_row(swatch(c, run.names) + escape(c), run.iou[c], before.get(c), base)
        for c in classes_of([run])
    ]
    mean = None if base is None else base.miou
    rows.append(_iou_row("mean", run.miou, mean, base, kind=' class="mean"'))
    extra = '<th class="number before">source</th><th class="number">Δ</th>' if base else ""
    return (
        "<section><h2>IoU per class</h2>"
        + _keys(run, base)
        + '<table class="iou"><thead><tr><th>class</th><td></td><th class="number">IoU</th>'
        + f"{extra}</tr></thead><tbody>{''.join(rows)}</tbody></table></section>"
    )


def _iou_row(
    name: str, value: float, before: float | None, base: Run | None, kind: str = ""
) -> str:
    bars = f'<div class="bar" style="width:{value:.1f}%"></div>'
    cells = f'<td class="number">{value:.1f}</td>'
    if base is not None and before is None:
        cells += f'<td class="number before">{ABSENT}</td><td class="number">{ABSENT}</td>'
    elif base is not None and before is not None:
        bars += f'<div class="bar base" style="width:{before:.1f}%"></div>'
        delta = value - before
        cells += f'<td class="number soft before">{before:.1f}</td>'
        cells += f'<td class="number {_tone(delta)}">{_signed(delta)}</td>'
    return f'<tr{kind}><th>{name}</th><td><div class="track">{bars}</div></td>{cells}</tr>'


def _keys(run: Run, base: Run | None) -> str:
    """Return the legend of run and source-only run; nothing to tell apart, nothing to say."""
    if base is None:
        return ""
    return (
        f'<div class="keys"><span><i class="run"></i>{escape(run.path.resolve().name)}</span>'
        f'<span><i class="base"></i>{escape(base.path.resolve().name)} (source-only)</span></div>'
    )


def curves_section(run: Run, base: Run | None) -> str:
    """Return mIoU over training, and each loss term on its own scale."""
    drawn = [(run, "run")] if base is None else [(base, "base"), (run, "run")]
    note = "Over training steps. Losses are before their weights."
    return training_section(drawn, run.losses(), note, _keys(run, base), end_values=True)


def training_section(
    drawn: Sequence[tuple[Run, str]],
    terms: Iterable[str],
    note: str,
    keys: str,
    *,
    end_values: bool = False,
) -> str:
    """Return mIoU and the loss `terms` of runs, each run in a role of the stylesheet."""
    scores: list[Series] = []
    losses: dict[str, list[Series]] = {term: [] for term in terms}
    for run, role in drawn:
        x, y = run.scores()
        scores.append(Series(x=x, y=y, role=role))
        for term, (x, y) in run.losses().items():
            if term in losses:
                losses[term].append(Series(x=x, y=y, role=role))
    score = ""
    if any(s.x for s in scores):
        label = "mIoU over iterations"
        chart = line_chart(scores, label=label, width=560, height=330, end_values=end_values)
        score = f'<figure class="score"><h3>mIoU [%]</h3>{chart}</figure>'
    if not score and not losses:
        return ""
    figures = "".join(
        f"<figure><h3>loss: {escape(term.replace('_', ' '))}</h3>"
        f"{line_chart(lines, label=f'loss {term} over iterations')}</figure>"
        for term, lines in losses.items()
    )
    return (
        f'<section><h2>Training</h2><p class="note">{note}</p>{keys}'
        f'<div class="curves">{score}<div class="charts">{figures}</div></div></section>'
    )


def embedding_section(
    before: Projection | None, before_name: str, after: Projection | None, names: Sequence[str]
) -> str:
    """Return the principal-component views of pixel features, before and after."""
    views = [(before_name, before), ("this run", after)]
    shown = [(name, view) for name, view in views if view is not None]
    if not shown:
        return ""
    figures = "".join(_view(name, view) for name, view in shown)
    classes = sorted(set().union(*(view.labels.unique().tolist() for _, view in shown)))
    return (
        "<section><h2>Pixel embeddings by class</h2>"
        '<p class="note">What the classifier reads at sampled validation pixels, unit length, '
        "along the two principal axes of each network's own features. The share of pixels nearest "
        "to their own class's mean is taken in all dimensions.</p>"
        f'<div class="views">{figures}</div>{legend(classes, names, unlabelled=False)}</section>'
    )


def _view(name: str, view: Projection) -> str:
    text = (
        f"{100 * view.nearest_centre:.0f} % of pixels are nearest to their own class's mean; "
        f"the axes hold {100 * view.explained:.0f} % of the variance"
    )
    plot = scatter(view, label=f"pixel embeddings, {name}")
    return f"<figure><h3>{escape(name)}</h3>{plot}<figcaption>{text}</figcaption></figure>"


def settings_section(run: Run, base: Run | None) -> str:
    """Return every setting, those first that differ from the source-only run's."""
    mine = flatten(run.config)
    if not mine:
        return ""
    parts = ["<section><h2>Settings</h2>"]
    changed: set[str] = set()
    if base is not None and base.config:
        theirs = flatten(base.config)
        changed = {k for k in mine if k not in theirs or theirs[k] != mine[k]}
        changed = {k for k in changed if k != "recipe" and not k.startswith("run.")}
        rows = "".join(
            _settings_row(k, theirs.get(k, ABSENT), v) for k, v in mine.items() if k in changed
        )
        if rows:
            parts.append(
                '<table class="settings"><thead><tr><th>differs</th><th>source-only</th>'
                f"<th>this run</th></tr></thead><tbody>{rows}</tbody></table><br>"
            )
        else:
            parts.append('<p class="note">No setting differs from the source-only run.</p>')
    rows = "".join(_settings_row(k, v, changed=k in changed) for k, v in mine.items())
    parts.append(
        f"<details><summary>All {len(mine)} settings</summary>"
        f'<table class="settings"><tbody>{rows}</tbody></table></details></section>'
    )
    return "".join(parts)


def _settings_row(key: str, *values: Any, changed: bool = False) -> str:
    cells = "".join(f"<td><code>{escape(str(value))}</code></td>" for value in values)
    kind = ' class="changed"' if changed else ""
    return f"<tr{kind}><td>{escape(key)}</td>{cells}</tr>"


def footer(run: Run, base: Run | None) -> str:
    """Return how to make this file again."""
    command = f"python -m pipa_fast.evaluate --run {run.path} --report"
    if base is not None:
        command += f" --baseline {base.path}"
    return f"<footer><p>Made by <code>{escape(command)}</code></p></footer>"
