# SPDX-License-Identifier: Apache-2.0
"""Rare-class sampling: images with rare classes are drawn more often (DAFormer, section 3.3)."""

from typing import NamedTuple

import numpy as np

from pipa_fast.checks import require
from pipa_fast.data.datasets import Dataset
from pipa_fast.data.labels import count_pixels


def class_counts(dataset: Dataset) -> np.ndarray:
    """Count the labelled pixels of every image and class: [images, 255] int64.

    Reads every label of the dataset once.
    """
    return np.stack([count_pixels(dataset.label(index)) for index in range(len(dataset))])


def class_probabilities(counts: np.ndarray, temperature: float) -> np.ndarray:
    """Return the chance of each class [C]: softmax((1 - frequency) / temperature).

    `counts` [C] are pixels; the frequency is a class's share of them. A class that does not occur
    has no chance.
    """
    require(temperature > 0, "temperature", temperature, "a positive number")
    total = counts.sum()
    require(total > 0, "counts", int(total), "of at least one labelled pixel")
    scores = np.where(counts > 0, (1 - counts / total) / temperature, -np.inf)
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


class Pick(NamedTuple):
    """An image to train on, and the class it was chosen for."""

    image: int
    label: int


class RareClassSampler:
    """Draws a class, the rare ones more often, then an image that shows it.

    Args:
        counts: [images, C] pixels of each class, from `class_counts`.
        temperature: the lower, the more the rarest classes are preferred.
        min_pixels: an image shows a class with more pixels than this. Of a class that no image
            shows, the images that hold any pixel of it serve.
    """

    def __init__(self, counts: np.ndarray, *, temperature: float, min_pixels: int) -> None:
        self.pixels = counts.sum(0)
        chances = class_probabilities(self.pixels, temperature)
        self.classes = np.flatnonzero(chances)
        self.probabilities = chances[self.classes]
        self._until = self.probabilities.cumsum()
        self.images: list[np.ndarray] = []
        for label in self.classes:
            shown = np.flatnonzero(counts[:, label] > min_pixels)
            self.images.append(shown if len(shown) else np.flatnonzero(counts[:, label]))

    def pick(self, generator: np.random.Generator) -> Pick:
        """Draw a class, and one of its images."""
        chance = generator.random() * self._until[-1]
        number = int(np.searchsorted(self._until, chance, side="right"))
        images = self.images[number]
        return Pick(int(images[generator.integers(len(images))]), int(self.classes[number]))
