# SPDX-License-Identifier: Apache-2.0
"""`streets`: a small domain-adaptation problem that needs no download.

Two procedural styles of the same kind of street, with exact labels: `synthetic` (flat, saturated,
clear) and `real` (other colours, shadows, haze, blur, noise). A scene is a pure function of
(seed, index, style), bit for bit on every machine. The pair is a benchmark: it is frozen by a
checksum test, and whoever changes a picture changes every number that was measured on it.
"""

from collections.abc import Sequence
from typing import Literal, get_args, overload

import numpy as np

from pipa_fast.checks import require
from pipa_fast.data.labels import IGNORE_INDEX
from pipa_fast.data.sample import Sample
from pipa_fast.data.streets_canvas import Camera, Canvas, Dice
from pipa_fast.data.streets_layout import Street, draw_street
from pipa_fast.data.streets_objects import Painter, Placement
from pipa_fast.data.streets_styles import STYLES, Style, develop

StyleName = Literal["synthetic", "real"]
Split = Literal["train", "val"]

SIZE = (128, 256)
SPLIT_SIZES: dict[Split, int] = {"train": 400, "val": 100}
EVAL_CLASSES: tuple[int, ...] = (0, 1, 2, 5, 6, 7, 8, 10, 11, 12, 13, 15, 18)
"""Train ids that the pair contains, and so those that its mean IoU is over."""

_SEED = 0
_FIRST_INDEX: dict[Split, int] = {"train": 0, "val": 100_000}


def render(
    seed: int, index: int, style: StyleName, size: tuple[int, int] = SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Render one scene: image uint8 [H, W, 3] (RGB) and label uint8 [H, W] (train ids, 255).

    Raises ValueError for a negative seed or index, an unknown style, or a size below 32 x 64.
    """
    require(seed >= 0, "seed", seed, "at least 0")
    require(index >= 0, "index", index, "at least 0")
    require(style in STYLES, "style", style, f"one of {', '.join(STYLES)}")
    ok = len(size) == 2 and size[0] >= 32 and size[1] >= 64
    require(ok, "size", size, "(height, width), at least (32, 64)")
    height, width = size
    look = STYLES[style]
    dice = Dice(seed, look.number, index)
    canvas = Canvas(height, width)
    camera = Camera(
        x=width * dice.uniform(0.4, 0.6),
        horizon=height * dice.uniform(*look.horizon),
        height=dice.uniform(1.35, 1.75),
        focal=1.6 * height,
    )
    street = draw_street(canvas, camera, dice, look)
    _populate(Painter(canvas, camera, dice, look), street, look)
    _hood(canvas, dice, look)
    image = develop(canvas, camera.focal, dice, look)
    label = np.array(canvas.labels, np.uint8)[canvas.index]
    _border(image, label, dice)
    return image, label


def _populate(painter: Painter, street: Street, style: Style) -> None:
    """Choose what stands where, then paint it far to near."""
    things = _furniture(painter, street, style) + _traffic(painter, street, style)
    things += _people(painter, street, style)
    things.sort(key=lambda thing: thing.scale)
    for thing in things:
        x, y = painter.camera.point(thing.side, thing.scale)
        depth, light = (0.22, 0.55) if thing.half > 0.5 else (0.1, 0.7)
        painter.canvas.shade(x, y, thing.half * thing.scale, depth * thing.scale, light)
    for thing in things:
        thing.paint(thing.side, thing.scale)


def _furniture(painter: Painter, street: Street, style: Style) -> list[Placement]:
    """Trees, posts, signs and lights along both kerbs."""
    dice, focal, unit = painter.dice, painter.camera.focal, painter.unit
    things: list[Placement] = []
    for side in (0, 1):
        out = -1.0 if side == 0 else 1.0
        kerb, front = street.kerb[side], street.front[side]
        z = dice.uniform(5.0, 12.0)
        while z < 50.0:
            at = kerb + (front - kerb) * dice.uniform(0.55, 0.95)
            if dice.chance(style.trees):
                paint = painter.tree if dice.chance(0.8) else painter.bush
                things.append(Placement(focal / z, at, paint))
            if dice.chance(0.25):
                post = kerb + out * dice.uniform(0.3, 0.6)
                things.append(Placement(focal / (z + 2.0), post, painter.lamp_post))
            z += dice.uniform(7.0, 14.0)
        if dice.chance(style.sign):
            scale = dice.uniform(10.0, 21.0) * unit
            things.append(Placement(scale, kerb + out * dice.uniform(1.2, 2.0), painter.sign))
        if dice.chance(style.light):
            scale = dice.uniform(13.0, 24.0) * unit
            things.append(
                Placement(scale, kerb + out * dice.uniform(-0.1, 0.4), painter.traffic_light)
            )
    return things


def _traffic(painter: Painter, street: Street, style: Style) -> list[Placement]:
    """Parked and moving cars, a bus now and then."""
    dice, focal, unit = painter.dice, painter.camera.focal, painter.unit
    things: list[Placement] = []
    left, right = street.kerb
    for side in (0, 1):
        if not dice.chance(0.7):
            continue
        at = left + 1.05 if side == 0 else right - 1.05
        z = dice.uniform(6.0, 14.0)
        while z < 40.0:
            if dice.chance(style.parked):
                things.append(Placement(focal / z, at + dice.uniform(-0.1, 0.1), painter.car, 0.95))
            z += dice.uniform(5.2, 9.0)
    for _ in range(dice.integer(*style.moving)):
        lane = dice.choice((0.3, 0.7))
        scale = focal / dice.uniform(7.0, 28.0)
        things.append(Placement(scale, left + (right - left) * lane, painter.car, 0.95))
    if dice.chance(0.2):
        scale = dice.uniform(6.0, 14.0) * unit
        things.append(Placement(scale, dice.uniform(left, right), painter.crossing_car, 2.3))
    if dice.chance(style.bus):
        lane = dice.choice((0.25, 0.75))
        scale = focal / dice.uniform(9.0, 24.0)
        things.append(Placement(scale, left + (right - left) * lane, painter.bus, 1.35))
    return things


def _people(painter: Painter, street: Street, style: Style) -> list[Placement]:
    """People on the sidewalks and crossing, riders on the road, bicycles left at the kerb."""
    dice, unit = painter.dice, painter.unit
    things: list[Placement] = []
    left, right = street.kerb
    for _ in range(dice.integer(*style.people)):
        scale = dice.uniform(18.0, 36.0) * unit
        side = dice.integer(0, 1)
        at = street.kerb[side] + (street.front[side] - street.kerb[side]) * dice.uniform(0.1, 0.8)
        if dice.chance(0.2):
            at = dice.uniform(left, right)
        things.append(Placement(scale, at, painter.person))
        if dice.chance(0.25):
            things.append(Placement(scale * 0.97, at + dice.uniform(0.5, 0.8), painter.person))
    if dice.chance(style.rider):
        scale = dice.uniform(20.0, 38.0) * unit
        edge = dice.choice((left + 0.8, right - 0.8))
        things.append(Placement(scale, edge + dice.uniform(-0.3, 1.2), painter.rider))
    if dice.chance(0.25):
        side = dice.integer(0, 1)
        scale, out = dice.uniform(20.0, 34.0) * unit, -0.5 if side == 0 else 0.5
        for number in range(dice.integer(1, 3)):
            at = street.kerb[side] + out + 0.7 * number * (1 if side else -1)
            things.append(Placement(scale, at, painter.bicycle))
    return things


def _hood(canvas: Canvas, dice: Dice, style: Style) -> None:
    """The own car's hood across the bottom: seen, but not labelled."""
    hood = canvas.material(IGNORE_INDEX, style.colour(dice, "hood"), canvas.height / 2.0)
    high = dice.uniform(0.04, 0.09) * canvas.height
    x, wide = canvas.width * dice.uniform(0.45, 0.55), canvas.width * 0.62
    canvas.ellipse(x, canvas.height + 0.5, wide, high, hood)


def _border(image: np.ndarray, label: np.ndarray, dice: Dice) -> None:
    """A strip outside the scene at one side, as rectified cameras leave it: black, unlabelled."""
    width = label.shape[1]
    strip = max(1, round(dice.uniform(0.01, 0.03) * width))
    side = dice.integer(0, 2)
    if side == 2:
        return
    columns = slice(0, strip) if side == 0 else slice(width - strip, width)
    image[:, columns] = 4
    label[:, columns] = IGNORE_INDEX


class Streets(Sequence[Sample]):
    """The scenes of one style and split, rendered when first asked for and then kept in memory."""

    eval_classes: tuple[int, ...] = EVAL_CLASSES

    def __init__(self, style: StyleName, split: Split) -> None:
        require(style in get_args(StyleName), "style", style, "'synthetic' or 'real'")
        require(split in SPLIT_SIZES, "split", split, "'train' or 'val'")
        self.style: StyleName = style
        self.split: Split = split
        self._cache: dict[int, Sample] = {}

    def __len__(self) -> int:
        return SPLIT_SIZES[self.split]

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} scenes")
        index = int(index) % len(self)
        if index not in self._cache:
            image, label = render(_SEED, _FIRST_INDEX[self.split] + index, self.style)
            image.flags.writeable = label.flags.writeable = False
            name = f"streets_{self.style}_{self.split}_{index:05d}"
            self._cache[index] = Sample(image, label, name)
        return self._cache[index]

    def image(self, index: int) -> np.ndarray:
        """Return an image, uint8 RGB [H, W, 3]."""
        return self[index].image

    def label(self, index: int) -> np.ndarray:
        """Return a label, uint8 train ids [H, W]."""
        return self[index].label
