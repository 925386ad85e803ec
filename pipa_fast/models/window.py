# SPDX-License-Identifier: Apache-2.0
"""A rectangle of an image, on the grid of a network's cells."""

from typing import NamedTuple

from torch import Tensor

from pipa_fast.checks import require


def starts(length: int, side: int, step: int) -> list[int]:
    """Return where windows of `side` begin on an axis, `step` apart, the last one at the border."""
    last = max(length - side, 0)
    return [*range(0, last, step), last]


class Window(NamedTuple):
    """Where a part of an image lies [pixels], y1 and x1 excluded."""

    y0: int
    x0: int
    y1: int
    x1: int

    def of(self, maps: Tensor, cell: int = 1) -> Tensor:
        """Return the view of maps [..., h, w], whose cells are `cell` pixels wide, that it holds.

        Raises:
            ValueError: it is not on the maps' grid, or not inside them.
        """
        height, width = maps.shape[-2] * cell, maps.shape[-1] * cell
        fits = 0 <= self.y0 < self.y1 <= height and 0 <= self.x0 < self.x1 <= width
        fits = fits and not any(side % cell for side in self)
        require(fits, "window", tuple(self), f"multiples of {cell} within {height} x {width}")
        y0, x0, y1, x1 = (side // cell for side in self)
        return maps[..., y0:y1, x0:x1]
