# SPDX-License-Identifier: Apache-2.0
"""What `streets` draws with: dice, a canvas of materials, and a camera.

A scene must come out the same on every machine. So random numbers come from PCG64's raw stream
(which numpy guarantees), images are computed with +, -, *, / only (exact IEEE operations,
whatever the instruction set), one operation per call (nothing that a compiler may fuse), and
nothing is summed in an order that a machine chooses.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
Colour = tuple[float, float, float]

_TO_UNIT = 1.0 / (1 << 53)


class Dice:
    """Random numbers of one scene: a pure function of the seed's integers and the call order."""

    def __init__(self, *entropy: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(entropy))
        self._pool: list[int] = []

    def unit(self) -> float:
        """Uniform in [0, 1)."""
        if not self._pool:
            self._pool = self._bits.random_raw(512).tolist()
        return (self._pool.pop() >> 11) * _TO_UNIT

    def uniform(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * self.unit()

    def integer(self, low: int, high: int) -> int:
        """Uniform in low..high, both included."""
        return low + int(self.unit() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.unit() < probability

    def choice(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[int(self.unit() * len(items))]

    def bytes(self, *shape: int) -> np.ndarray:
        """Uniform bytes of the given shape, uint8."""
        count = 1
        for size in shape:
            count *= size
        raw = self._bits.random_raw((count + 7) // 8).astype("<u8")
        return raw.view(np.uint8)[:count].reshape(shape)


Box = tuple[slice, slice]  # rows, columns


def _span(low: float, high: float) -> slice:
    """Return the pixels between two places: a pixel belongs to a shape that covers its centre."""
    return slice(max(0, math.ceil(low - 0.5)), max(0, math.ceil(high - 0.5)))


class Canvas:
    """A map of material indices; colour, label, scale and texture are the materials'.

    index: [H, W] uint16; gain: [H, W] float32, the light that falls on the background (objects
    are lit evenly); scale: [H, W] float32, the background's pixels per metre, 0 at infinity.
    """

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.index = np.zeros((height, width), np.uint16)
        self.gain = np.ones((height, width), np.float32)
        self.scale = np.zeros((height, width), np.float32)
        self.columns = np.arange(width) + 0.5
        self.rows = np.arange(height)[:, None] + 0.5
        self.labels: list[int] = []
        self.colours: list[Colour] = []
        self.scales: list[float] = []
        self.textures: list[float] = []
        self.first_object = 0

    def material(self, label: int, colour: Colour, scale: float = 0.0, texture: float = 0.0) -> int:
        """Add a material (train id, RGB 0..255, pixels per metre, texture's amplitude)."""
        self.labels.append(label)
        self.colours.append(colour)
        self.scales.append(scale)
        self.textures.append(texture)
        return len(self.labels) - 1

    def rectangle(self, x0: float, y0: float, x1: float, y1: float, material: int) -> None:
        """Fill an axis-aligned rectangle."""
        self.index[_span(y0, y1), _span(x0, x1)] = material

    def _ellipse(self, x: float, y: float, rx: float, ry: float) -> tuple[Box, np.ndarray]:
        """Return the box of an axis-aligned ellipse, and which of its pixels are inside."""
        box = rows, columns = _span(y - ry, y + ry), _span(x - rx, x + rx)
        dx = (self.columns[columns] - x) / rx
        dy = (self.rows[rows] - y) / ry
        return box, dx * dx + dy * dy <= 1.0

    def ellipse(self, x: float, y: float, rx: float, ry: float, material: int) -> None:
        """Fill an axis-aligned ellipse."""
        box, inside = self._ellipse(x, y, rx, ry)
        np.copyto(self.index[box], material, where=inside)

    def polygon(self, points: Sequence[tuple[float, float]], material: int) -> None:
        """Fill a convex polygon, corners in either order."""
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        box = _span(min(ys), max(ys)), _span(min(xs), max(xs))
        rows, cols = self.rows[box[0]], self.columns[box[1]]
        area = 0.0
        for i in range(len(points)):
            area += xs[i - 1] * ys[i] - xs[i] * ys[i - 1]
        inside: np.ndarray | None = None
        for i in range(len(points)):
            ax, ay, bx, by = xs[i - 1], ys[i - 1], xs[i], ys[i]
            if area < 0:
                ax, ay, bx, by = bx, by, ax, ay
            side = (bx - ax) * (rows - ay) >= (by - ay) * (cols - ax)
            inside = side if inside is None else inside & side
        assert inside is not None
        np.copyto(self.index[box], material, where=inside)

    def shade(self, x: float, y: float, rx: float, ry: float, factor: float) -> None:
        """Darken the background inside an ellipse (a contact shadow)."""
        box, inside = self._ellipse(x, y, rx, ry)
        region = self.gain[box]
        np.multiply(region, np.float32(factor), out=region, where=inside)


class Camera:
    """A pinhole camera that looks down the street.

    A thing at scale s (pixels per metre) is focal / s metres away; a point of the ground there
    lies height * s rows below the horizon.
    """

    def __init__(self, x: float, horizon: float, height: float, focal: float) -> None:
        self.x, self.horizon, self.height, self.focal = x, horizon, height, focal

    def point(self, side: float, scale: float, up: float = 0.0) -> tuple[float, float]:
        """Image position of a point `side` metres right of the camera and `up` above ground."""
        return self.x + side * scale, self.horizon + (self.height - up) * scale

    def farther(self, scale: float, metres: float) -> float:
        """The scale that many metres behind the given one."""
        return self.focal / (self.focal / scale + metres)
