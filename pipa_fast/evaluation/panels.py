# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a network sees: image, truth, prediction, confidence and error side by side."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from pipa_fast.checks import require
from pipa_fast.data.datasets import Dataset
from pipa_fast.data.labels import CLASSES, COLOURS, IGNORE_INDEX
from pipa_fast.data.sample import Sample
from pipa_fast.evaluation.inference import evaluating, predict_logits, to_batch

WRONG = np.array([226, 48, 48], np.float32)  # red, in no class's hue at this brightness
UNSCORED = 40  # grey level of pixels without a label in the error picture


@dataclass(kw_only=True, slots=True, frozen=True)
class Panel:
    """One validation image and what networks make of it, all at the label's size [H, W]."""

    name: str
    image: np.ndarray  # [H', W', 3] uint8, at its own size
    truth: np.ndarray  # [H, W] uint8 train ids
    prediction: np.ndarray  # [H, W] uint8
    confidence: np.ndarray  # [H, W] float32, probability of the most likely class
    confidence_of: Literal["teacher", "student"]
    baseline: np.ndarray | None = None  # [H, W] uint8, the source-only network's prediction

    def accuracy(self, prediction: np.ndarray) -> float:
        """Return the share of labelled pixels that `prediction` has right; NaN without any."""
        labelled = self.truth != IGNORE_INDEX
        if not labelled.any():
            return float("nan")
        return float(np.mean(prediction[labelled] == self.truth[labelled]))

    def columns(self) -> list[tuple[str, np.ndarray]]:
        """Return the pictures [., ., 3] uint8 with their captions, from left to right."""
        pictures = [("image", self.image), ("truth", colorize(self.truth))]
        if self.baseline is not None:
            pictures.append(("source-only prediction", colorize(self.baseline)))
        return [
            *pictures,
            ("prediction", colorize(self.prediction)),
            (f"{self.confidence_of}'s confidence", heat(self.confidence)),
            ("error", error_picture(self.image, self.truth, self.prediction)),
        ]


def predict_sample(
    network: nn.Module, *, sample: Sample, device: torch.device | str, **view: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels [H, W] uint8 and their probabilities, at the size of the sample's label.

    `view` goes to `predict_logits`. The network is left in the mode it was in.
    """
    size, images = (sample.label.shape[0], sample.label.shape[1]), to_batch([sample.image], device)
    with evaluating(network):
        best = predict_logits(network, images, size=size, **view).softmax(1).max(1)
    return best.indices[0].cpu().numpy().astype(np.uint8), best.values[0].cpu().numpy()


def collect_panels(
    network: nn.Module,
    teacher: nn.Module | None,
    dataset: Dataset,
    indices: Iterable[int],
    baseline: nn.Module | None = None,
    *,
    device: torch.device | str = "cpu",
    **view: Any,
) -> list[Panel]:
    """Predict the images `indices` of `dataset` for display; without a teacher, the confidence
    shown is the network's own. `view` goes to `predict_logits`: how networks see an image. Every
    network is left in the mode it was in."""
    panels = []
    for index in indices:
        sample = dataset[index]
        probabilities = functools.partial(predict_sample, sample=sample, device=device, **view)
        prediction, confidence = probabilities(network)
        panels.append(
            Panel(
                name=sample.name,
                image=sample.image,
                truth=sample.label,
                prediction=prediction,
                confidence=confidence if teacher is None else probabilities(teacher)[1],
                confidence_of="student" if teacher is None else "teacher",
                baseline=None if baseline is None else probabilities(baseline)[0],
            )
        )
    return panels


def spread_indices(length: int, count: int) -> list[int]:
    """Return up to `count` distinct indices below `length`, evenly spread: nobody's choice."""
    count = min(length, count)
    return [(2 * i + 1) * length // (2 * count) for i in range(count)]


def colorize(labels: np.ndarray) -> np.ndarray:
    """Return train ids [H, W] uint8 in their colours [H, W, 3] uint8; ignored pixels are black."""
    return COLOURS[labels]


def heat(values: np.ndarray) -> np.ndarray:
    """Return values [H, W] in [0, 1] as a viridis picture [H, W, 3] uint8."""
    import matplotlib

    return matplotlib.colormaps["viridis"](values, bytes=True)[..., :3]


def error_picture(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Return the image in pale grey with wrong pixels red and unlabelled ones dark [H, W, 3]."""
    height, width = truth.shape
    grey = np.asarray(Image.fromarray(image).convert("L").resize((width, height)), np.float32)
    picture = np.repeat((105 + 0.5 * grey)[..., None], 3, axis=2)
    labelled = truth != IGNORE_INDEX
    wrong = labelled & (prediction != truth)
    picture[wrong] = 0.8 * WRONG + 0.2 * picture[wrong]
    picture[~labelled] = UNSCORED
    return picture.astype(np.uint8)


def overlay(image: np.ndarray, labels: np.ndarray, *, blend: float = 0.5) -> np.ndarray:
    """Return the image [H, W, 3] with `blend` of the labels' colours; ignored pixels stay bare."""
    require(0 <= blend <= 1, "blend", blend, "a share in [0, 1]")
    share = np.where(labels == IGNORE_INDEX, 0.0, blend)[..., None]
    return np.rint(image * (1 - share) + colorize(labels) * share).astype(np.uint8)


def resize_to_width(picture: np.ndarray, width: int) -> np.ndarray:
    """Return `picture` [H, W, 3] at `width`: enlarged pixels stay sharp, reduced ones average."""
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    method = Image.Resampling.NEAREST if width >= picture.shape[1] else Image.Resampling.BOX
    return np.asarray(Image.fromarray(picture).resize((width, height), method))


def save_panels(
    panels: Sequence[Panel], path: Path, *, cell: int = 256, names: Sequence[str] = CLASSES
) -> Path:
    """Write all panels as one PNG: a row per image, column headings above, class colours below."""
    require(len(panels) > 0, "panels", "none", "at least one panel")
    font, gap, heading = ImageFont.load_default(size=16), 8, 34
    rows = [panel.columns() for panel in panels]
    cells = [[resize_to_width(picture, cell) for _, picture in row] for row in rows]
    heights = [max(picture.shape[0] for picture in row) for row in cells]
    width = gap + max(len(row) for row in rows) * (cell + gap)
    canvas = Image.new("RGB", (width, heading + sum(heights) + gap * len(heights)), "white")
    draw = ImageDraw.Draw(canvas)
    for column, (caption, _) in enumerate(rows[0]):
        draw.text((gap + column * (cell + gap), 9), caption, fill=(30, 34, 40), font=font)
    top = heading
    for row, tall in zip(cells, heights, strict=True):
        for column, picture in enumerate(row):
            canvas.paste(Image.fromarray(picture), (gap + column * (cell + gap), top))
        top += tall + gap
    whole = with_legend(np.asarray(canvas), present_classes(panels), names)
    Image.fromarray(whole).save(path, optimize=True)
    return path


def present_classes(panels: Sequence[Panel]) -> list[int]:
    """Return the train ids that occur in the truth or a prediction of some panel."""
    maps = [m for p in panels for m in (p.truth, p.prediction, p.baseline) if m is not None]
    present = set().union(*(np.unique(m).tolist() for m in maps))
    return sorted(present - {IGNORE_INDEX})


def with_legend(
    picture: np.ndarray, classes: Sequence[int], names: Sequence[str] = CLASSES
) -> np.ndarray:
    """Return `picture` [H, W, 3] uint8 with the train ids' colours and names in white below it.

    A picture that is narrower than the longest name gets a white margin at its right.
    """
    require(len(classes) > 0, "classes", list(classes), "at least one train id")
    font, gap = ImageFont.load_default(size=16), 8
    needs = [21 + round(font.getlength(names[c])) + 24 for c in classes]
    width = max(picture.shape[1], gap + max(needs))
    places, left, top = [], gap, picture.shape[0] + 4
    for need in needs:
        if left + need > width and left > gap:
            left, top = gap, top + 26
        places.append((left, top))
        left += need
    canvas = Image.new("RGB", (width, top + 30), "white")
    canvas.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for c, (left, top) in zip(classes, places, strict=True):
        box = (left, top + 3, left + 14, top + 17)
        draw.rectangle(box, fill=tuple(int(v) for v in COLOURS[c]), outline=(120, 120, 120))
        draw.text((left + 21, top), names[c], fill=(30, 34, 40), font=font)
    return np.asarray(canvas)
