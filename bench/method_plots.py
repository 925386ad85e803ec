# SPDX-License-Identifier: Apache-2.0
"""How `python -m bench.method_pictures` draws what it has collected."""

import io
from typing import Any

import matplotlib
import matplotlib.colors
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from pipa_fast.data.labels import CLASSES, PALETTE
from pipa_fast.evaluation.panels import colorize

COLOURS = ("#e07b00", "#0072b2")  # of the first and the second view
DPI = 110
# Few levels: a picture of them is a third of the size, and its scale can be read
DIVERGING = matplotlib.colormaps["RdBu_r"].resampled(21)
SEQUENTIAL = matplotlib.colormaps["viridis"].resampled(10)


def image_of(figure: Figure) -> Image.Image:
    """Return a figure as a picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, facecolor="white")
    return Image.open(buffer).convert("RGB")


def show(axes: Axes, pixels: np.ndarray, title: str, note: str = "", **how: Any) -> Any:
    """Draw a picture without ticks, its title above and a note below."""
    drawn = axes.imshow(pixels, interpolation="nearest", **how)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(note, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    return drawn


def draw_self_training(shown: dict[str, Any]) -> Image.Image:
    """Source and target above, the mixed image and its labels below."""
    figure = Figure(figsize=(11, 4.9), layout="constrained")
    axes = figure.subplots(2, 3)
    show(axes[0, 0], shown["source"], "source image", "synthetic style, labelled")
    show(axes[0, 1], shown["target"], "target image", "real style, labels never read")
    teacher = colorize(shown["labels"])
    note = f"pseudo labels, mean confidence {shown['confidence'].mean():.2f}"
    show(axes[0, 2], teacher, "the teacher's labels of the target", note)
    show(axes[1, 0], colorize(shown["source_labels"]), "source labels", "black: no label")
    show(axes[1, 1], shown["mixed"], "mixed image", "half of the classes pasted onto the target")
    show(axes[1, 2], colorize(shown["mixed_labels"]), "labels of the mixed image", "what it learns")
    return image_of(figure)


def class_bounds(labels: np.ndarray) -> list[tuple[int, int, int]]:
    """Return (class, first row, row after the last) of sorted labels."""
    classes, first = np.unique(labels, return_index=True)
    ends = [*first[1:], len(labels)]
    return [(int(c), int(a), int(b)) for c, a, b in zip(classes, first, ends, strict=True)]


def draw_matrices(anchors: Any, image: np.ndarray, index: int) -> Image.Image:
    """Anchors on an image, and their cosines with each other, sorted by class."""
    labels = anchors.labels.numpy()
    figure = Figure(figsize=(11.5, 7.2), layout="constrained")
    rows: Any = figure.subfigures(2, 1, height_ratios=[1, 2.1])
    upper, lower = rows
    left, right = upper.subplots(1, 2)
    show(left, image, "a source image", "1 of the batch's 4")
    show(right, image, "its anchors, in the colours of their classes", alpha=0.35)
    own = (anchors.image == index).numpy()
    place, hard = anchors.place.numpy()[own], anchors.hard.numpy()[own]
    cell = image.shape[0] / (anchors.place[:, 0].max().item() + 1)
    xy = (place[:, ::-1] + 0.5) * cell - 0.5
    colours = np.array(PALETTE)[labels[own]] / 255
    for which, marker, edge, size in ((~hard, "o", "black", 13), (hard, "s", "red", 20)):
        right.scatter(
            *xy[which].T, c=colours[which], marker=marker, s=size, edgecolors=edge, linewidths=0.7
        )
    right.set_xlabel("red squares: pixels that the network has wrong", fontsize=9)
    axes = lower.subplots(1, 2)
    bounds = class_bounds(labels)
    same = labels[:, None] == labels[None, :]
    np.fill_diagonal(same, False)
    apart = labels[:, None] != labels[None, :]
    drawn = None
    for panel, features, title in (
        (axes[0], anchors.before, "before the first step"),
        (axes[1], anchors.after, "after the last step"),
    ):
        cosines = (features @ features.T).numpy()
        note = f"mean cosine: {cosines[same].mean():.2f} within a class, "
        note += f"{cosines[apart].mean():.2f} between classes"
        drawn = show(panel, cosines, title, note, cmap=DIVERGING, vmin=-1.05, vmax=1.05)
        for c, first, last in bounds:
            box = (-0.045 * len(labels), first), 0.035 * len(labels), last - first
            panel.add_patch(Rectangle(*box, color=np.array(PALETTE[c]) / 255, clip_on=False))
            panel.axhline(first - 0.5, color="black", lw=0.3)
            panel.axvline(first - 0.5, color="black", lw=0.3)
        name_classes(panel, bounds, len(labels))
    bar = lower.colorbar(drawn, ax=list(axes), label="cosine of two anchors", shrink=0.8)
    bar.set_ticks([-1, -0.5, 0, 0.5, 1])
    return image_of(figure)


def name_classes(panel: Axes, bounds: list[tuple[int, int, int]], rows: int) -> None:
    """Write the classes' names to the left of a matrix, those with room for one line each."""
    below = -1.0
    for c, first, last in bounds:
        y = max((first + last) / 2, below)
        below = y + rows / 22
        panel.text(-0.06 * rows, y, CLASSES[c], ha="right", va="center", fontsize=7.5)


def draw_embeddings(shown: dict[str, Any]) -> Image.Image:
    """Images, truth, and embeddings as colours: a row each for source and target."""
    figure = Figure(figsize=(11.5, 3.4), layout="constrained")
    axes = figure.subplots(2, 4)
    for row, name in enumerate(("source style", "target style")):
        show(axes[row, 0], shown["images"][row], "validation image" if row == 0 else "")
        show(axes[row, 1], colorize(shown["truth"][row]), "truth" if row == 0 else "")
        for column, when in ((2, "before"), (3, "after")):
            title = f"embeddings {when} training" if row == 0 else ""
            show(axes[row, column], shown["colours"][when][row], title)
        axes[row, 0].set_ylabel(name, fontsize=9)
    return image_of(figure)


def frame(axes: Axes, box: tuple[float, ...], colour: str, **how: Any) -> None:
    """Draw a box y0 x0 y1 x1."""
    y0, x0, y1, x1 = box
    size = (x1 - x0, y1 - y0)
    axes.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), *size, ec=colour, **how))


def draw_views(pairs: Any) -> Image.Image:
    """The target image with both crops, and each crop as the student sees it."""
    figure = Figure(figsize=(11.5, 3.6), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=[2, 1, 1])
    show(axes[0], pairs.whole, "a target image and its two crops", "hatched: what both see")
    frame(axes[0], pairs.shared, "white", fc="none", hatch="//", lw=0)
    for i, name in enumerate(("first", "second")):
        frame(axes[0], tuple(pairs.boxes[i]), COLOURS[i], fc="none", lw=3)
        note = "mirrored, colours changed" if pairs.flips[i] else "colours changed"
        show(axes[1 + i], pairs.views[i], f"the {name} crop, as the student sees it", note)
        y0, x0, y1, x1 = (
            side - origin
            for side, origin in zip(pairs.shared, np.tile(pairs.boxes[i][:2], 2), strict=True)
        )
        if pairs.flips[i]:
            width = pairs.boxes[i][3] - pairs.boxes[i][1]
            x0, x1 = width - x1, width - x0
        frame(axes[1 + i], (y0, x0, y1, x1), "white", fc="none", hatch="//", lw=1)
        for spine in axes[1 + i].spines.values():
            spine.set(color=COLOURS[i], linewidth=4)
    return image_of(figure)


def draw_pairs(pairs: Any) -> Image.Image:
    """What both crops see, cell by cell: labels, confidence, who is an anchor, and cosines."""
    figure = Figure(figsize=(11.5, 5.2), layout="constrained")
    rows: Any = figure.subfigures(2, 1, height_ratios=[1, 1.1])
    upper, lower = rows
    axes = upper.subplots(1, 4)
    y0, x0, y1, x1 = pairs.shared
    show(axes[0], pairs.whole[y0:y1, x0:x1], "what both crops see")
    for i, name in enumerate(("first", "second")):
        drawn = show(
            axes[1 + i],
            pairs.confidence[i],
            f"confidence in the {name} crop",
            cmap=SEQUENTIAL,
            vmin=0,
            vmax=1,
        )
    upper.colorbar(drawn, ax=list(axes[1:3]), shrink=0.7)
    who = np.full((*pairs.counts[0].shape, 3), 225, np.uint8)
    for i in (0, 1):
        who[pairs.counts[i]] = (255 * np.array(matplotlib.colors.to_rgb(COLOURS[i]))).astype("u1")
    show(axes[3], who, "which view learns there", "orange: first, blue: second, grey: none")
    axes = lower.subplots(1, 2)
    counted = pairs.counts[0] | pairs.counts[1]
    bins = np.linspace(-1, 1, 61)
    for panel, when in zip(axes, ("before", "after"), strict=True):
        same, other = pairs.cosines[when][counted], pairs.apart[when]
        for values, colour, label in (
            (other, "#999999", f"cells of other classes, mean {other.mean():.2f}"),
            (same, "#009e73", f"the same place in the other crop, mean {same.mean():.2f}"),
        ):
            weights = np.full(len(values), 1 / max(1, len(values)))
            panel.hist(values, bins, weights=weights, color=colour, alpha=0.75, label=label)
        panel.set_title(f"{when} training", fontsize=10)
        panel.set_xlabel("cosine of two features", fontsize=9)
        panel.set_yticks([])
        panel.legend(fontsize=8, loc="upper left")
        panel.spines[["top", "left", "right"]].set_visible(False)
    return image_of(figure)
