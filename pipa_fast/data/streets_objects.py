# SPDX-License-Identifier: Apache-2.0
"""What stands and moves on the street: trees, poles, signs, lights, vehicles and people.

Every function here paints one object at `side` metres right of the camera and at `scale` pixels
per metre. Sizes are metres times scale, with a floor in pixels where a thing would be too thin
to be told apart.
"""

from collections.abc import Callable
from typing import NamedTuple

from pipa_fast.data.streets_canvas import Camera, Canvas, Colour, Dice
from pipa_fast.data.streets_styles import Style

POLE, LIGHT, SIGN, VEGETATION = 5, 6, 7, 8
PERSON, RIDER, CAR, BUS, BICYCLE = 11, 12, 13, 15, 18


class Painter:
    """Paints objects of one scene in one style."""

    def __init__(self, canvas: Canvas, camera: Camera, dice: Dice, style: Style) -> None:
        self.canvas, self.camera, self.dice, self.style = canvas, camera, dice, style
        self.unit = canvas.height / 128  # one pixel of a 128-row image

    def _paint(self, label: int, kind: str, scale: float, surface: str = "") -> int:
        colour = self.style.colour(self.dice, kind)
        return self.canvas.material(label, colour, scale, self.style.amplitude(surface))

    def _tint(self, label: int, colour: Colour, by: float, scale: float, surface: str) -> int:
        tinted = (colour[0] * by, colour[1] * by, colour[2] * by)
        return self.canvas.material(label, tinted, scale, self.style.amplitude(surface))

    def _box(
        self, side: float, scale: float, box: tuple[float, float, float, float], material: int
    ) -> None:
        """A rectangle that faces the camera: left, bottom, right, top in metres from the foot."""
        x0, y0 = self.camera.point(side + box[0], scale, box[1])
        x1, y1 = self.camera.point(side + box[2], scale, box[3])
        self.canvas.rectangle(x0, y1, x1, y0, material)

    def tree(self, side: float, scale: float) -> None:
        """A trunk and a crown of several clumps."""
        dice, canvas = self.dice, self.canvas
        height = dice.uniform(4.0, 8.0)
        trunk = self._paint(VEGETATION, "trunk", scale)
        half = max(0.14, 0.8 * self.unit / scale)
        self._box(side, scale, (-half, 0.0, half, 0.6 * height), trunk)
        colour = self.style.colour(dice, "vegetation")
        radius = dice.uniform(0.18, 0.28) * height
        for _ in range(5):
            leaf = self._tint(VEGETATION, colour, dice.uniform(0.85, 1.15), scale, "vegetation")
            x, y = self.camera.point(
                side + dice.uniform(-0.8, 0.8) * radius, scale, dice.uniform(0.55, 0.9) * height
            )
            size = radius * scale
            canvas.ellipse(x, y, size * dice.uniform(0.7, 1.1), size * dice.uniform(0.6, 0.9), leaf)

    def bush(self, side: float, scale: float) -> None:
        """A low shrub."""
        leaf = self._paint(VEGETATION, "vegetation", scale, "vegetation")
        wide, high = self.dice.uniform(0.6, 1.4), self.dice.uniform(0.5, 1.2)
        for shift in (-0.5, 0.1, 0.6):
            x, y = self.camera.point(side + shift * wide, scale, 0.4 * high)
            self.canvas.ellipse(x, y, 0.7 * wide * scale, 0.6 * high * scale, leaf)

    def _post(self, side: float, scale: float, height: float) -> None:
        post = self._paint(POLE, "pole", scale, "pole")
        half = max(0.11, 1.9 * self.unit / scale)
        self._box(side, scale, (-half, 0.0, half, height), post)

    def lamp_post(self, side: float, scale: float) -> None:
        """A tall post with an arm towards the road."""
        height = self.dice.uniform(5.0, 8.0)
        self._post(side, scale, height)
        arm = self._paint(POLE, "pole", scale, "pole")
        thick = max(0.14, 3.0 * self.unit / scale)
        reach = -1.6 if side > 0 else 1.6
        self._box(side, scale, (min(0.0, reach), height - thick, max(0.0, reach), height), arm)

    def sign(self, side: float, scale: float) -> None:
        """A post with one plate: round, triangular, square or a diamond."""
        dice, canvas = self.dice, self.canvas
        height = dice.uniform(2.3, 3.0)
        self._post(side, scale, height)
        r = max(dice.uniform(0.45, 0.6) * scale, 6.5 * self.unit)
        x, y = self.camera.point(side, scale, height)
        rim = self._paint(SIGN, dice.choice(("sign_red", "sign_blue", "sign_yellow")), scale)
        inner = self._paint(SIGN, "sign_inner", scale)
        shape = dice.integer(0, 3)
        if shape == 0:
            canvas.ellipse(x, y, r, r, rim)
            if dice.chance(0.5):
                canvas.ellipse(x, y, 0.6 * r, 0.6 * r, inner)
            else:
                canvas.rectangle(x - 0.65 * r, y - 0.22 * r, x + 0.65 * r, y + 0.22 * r, inner)
        elif shape == 1:
            for size, paint in ((1.15, rim), (0.55, inner)):
                s = size * r
                canvas.polygon(
                    ((x - s, y + 0.75 * s), (x + s, y + 0.75 * s), (x, y - 0.95 * s)), paint
                )
        elif shape == 2:
            canvas.rectangle(x - r, y - r, x + r, y + r, rim)
            canvas.rectangle(x - 0.45 * r, y - 0.45 * r, x + 0.45 * r, y + 0.5 * r, inner)
        else:
            for size, paint in ((1.2, inner), (0.85, rim)):
                s = size * r
                canvas.polygon(((x - s, y), (x, y - s), (x + s, y), (x, y + s)), paint)

    def traffic_light(self, side: float, scale: float) -> None:
        """A post with a box of three lamps, one of them lit."""
        dice, canvas = self.dice, self.canvas
        height = dice.uniform(2.8, 3.6)
        self._post(side, scale, height)
        x, y = self.camera.point(side, scale, height)
        half_w = max(0.3 * scale, 4.5 * self.unit)
        half_h = max(0.7 * scale, 10.5 * self.unit)
        rim, box = self._paint(LIGHT, "light_rim", scale), self._paint(LIGHT, "light_box", scale)
        edge = max(0.09 * scale, 1.5 * self.unit)
        canvas.rectangle(x - half_w, y - half_h, x + half_w, y + half_h, rim)
        canvas.rectangle(
            x - half_w + edge, y - half_h + edge, x + half_w - edge, y + half_h - edge, box
        )
        lit = dice.choice((0, 0, 1, 2, 2))
        for lamp, kind in enumerate(("lamp_red", "lamp_amber", "lamp_green")):
            paint = self._paint(LIGHT, kind if lamp == lit else "lamp_off", scale)
            at = y + (lamp - 1) * 0.62 * half_h
            canvas.ellipse(x, at, 0.7 * half_w, 0.27 * half_h, paint)

    def _hull(
        self,
        label: int,
        shape: tuple[float, float, float, float],
        side: float,
        scales: tuple[float, float],
        paints: tuple[int, int],
    ) -> None:
        """A block that runs away from the camera: its flank, then its face.

        shape: half width, bottom, top (m), how much narrower the top is. scales: near, far.
        """
        half, low, high, taper = shape
        near, far = scales
        point = self.camera.point
        if abs(side) > half:
            edge = side - half if side > 0 else side + half
            lean = taper if side > 0 else -taper
            self.canvas.polygon(
                (
                    point(edge, near, low),
                    point(edge, far, low),
                    point(edge + lean, far, high),
                    point(edge + lean, near, high),
                ),
                paints[1],
            )
        face = (
            point(side - half, near, low),
            point(side + half, near, low),
            point(side + half - taper, near, high),
            point(side - half + taper, near, high),
        )
        self.canvas.polygon(face, paints[0])

    def car(self, side: float, scale: float) -> None:
        """A car that points along the street, seen from behind (right) or in front (left)."""
        dice, camera, canvas = self.dice, self.camera, self.canvas
        length, half, height = dice.uniform(3.6, 4.6), 0.88, dice.uniform(1.35, 1.7)
        colour = self.style.colour(dice, "car")
        face = self._tint(CAR, colour, 1.0, scale, "car")
        flank = self._tint(CAR, colour, 0.82, scale, "car")
        glass = self._paint(CAR, "glass", scale)
        tyre = self._paint(CAR, "tyre", scale)
        far = camera.farther(scale, length)
        waist = 0.58 * height
        if abs(side) > half:
            edge = side - half if side > 0 else side + half
            for along in (0.18, 0.8):
                at = camera.farther(scale, along * length)
                x, y = camera.point(edge, at, 0.3)
                ahead = camera.point(edge, camera.farther(scale, along * length + 0.33), 0.3)[0]
                canvas.ellipse(x, y, max(abs(ahead - x), 0.5), 0.32 * at, tyre)
        cabin = (camera.farther(scale, 0.1 * length), camera.farther(scale, 0.7 * length))
        self._hull(CAR, (half - 0.06, waist - 0.3, height, 0.2), side, cabin, (face, flank))
        self._hull(CAR, (half - 0.10, waist, height - 0.1, 0.16), side, cabin, (glass, glass))
        for shift in (-0.65, 0.65):
            self._box(side + shift, scale, (-0.13, 0.0, 0.13, 0.3), tyre)
        self._hull(CAR, (half, 0.2, waist, 0.0), side, (scale, far), (face, flank))
        lamp = self._paint(CAR, "tail" if side > 0 else "head", scale)
        for shift in (-0.68, 0.68):
            self._box(side + shift, scale, (-0.16, waist - 0.28, 0.16, waist - 0.08), lamp)
        plate = self._paint(CAR, "plate", scale)
        self._box(side, scale, (-0.26, 0.36, 0.26, 0.5), plate)

    def crossing_car(self, side: float, scale: float) -> None:
        """A car seen from the side."""
        dice, point, canvas = self.dice, self.camera.point, self.canvas
        length, height = dice.uniform(3.8, 4.6), dice.uniform(1.35, 1.6)
        body = self._paint(CAR, "car", scale, "car")
        glass, tyre = self._paint(CAR, "glass", scale), self._paint(CAR, "tyre", scale)
        half, waist = 0.5 * length, 0.6 * height
        self._box(side, scale, (-half, 0.22, half, waist), body)
        for inset, paint, top in ((0.0, body, height), (0.12, glass, height - 0.1)):
            canvas.polygon(
                (
                    point(side - 0.62 * half + inset, scale, waist),
                    point(side + 0.72 * half - inset, scale, waist),
                    point(side + 0.42 * half - inset, scale, top),
                    point(side - 0.4 * half + inset, scale, top),
                ),
                paint,
            )
        self._box(side, scale, (-0.05, waist, 0.05, height), body)
        for shift in (-0.6, 0.62):
            x, y = point(side + shift * half, scale, 0.31)
            canvas.ellipse(x, y, 0.33 * scale, 0.31 * scale, tyre)

    def bus(self, side: float, scale: float) -> None:
        """A bus that points along the street."""
        dice, camera = self.dice, self.camera
        length, half, height = dice.uniform(9.0, 12.0), 1.22, dice.uniform(2.9, 3.3)
        colour = self.style.colour(dice, "bus")
        face = self._tint(BUS, colour, 1.0, scale, "bus")
        flank = self._tint(BUS, colour, 0.84, scale, "bus")
        glass, tyre = self._paint(BUS, "glass", scale), self._paint(BUS, "tyre", scale)
        scales = (scale, camera.farther(scale, length))
        for shift in (-0.9, 0.9):
            self._box(side + shift, scale, (-0.18, 0.0, 0.18, 0.4), tyre)
        self._hull(BUS, (half, 0.3, height, 0.0), side, scales, (face, flank))
        inner = (camera.farther(scale, 0.05 * length), camera.farther(scale, 0.95 * length))
        if abs(side) > half:
            self._hull(BUS, (half, 1.3, 0.82 * height, 0.0), side, inner, (flank, glass))
        self._hull(BUS, (half, 0.3, height, 0.0), side, (scale, scale), (face, flank))
        self._box(side, scale, (-1.05, 1.25, 1.05, 0.8 * height), glass)
        self._box(side, scale, (-0.7, 0.84 * height, 0.7, 0.95 * height), tyre)
        lamp = self._paint(BUS, "tail" if side > 0 else "head", scale)
        for shift in (-0.9, 0.9):
            self._box(side + shift, scale, (-0.2, 0.6, 0.2, 0.85), lamp)

    def person(self, side: float, scale: float) -> None:
        """Someone on foot: legs in step, a coat, arms, a head."""
        dice, point, canvas = self.dice, self.camera.point, self.canvas
        height = dice.uniform(1.6, 1.9)
        trousers = self._paint(PERSON, "trousers", scale, "person")
        step = dice.uniform(0.0, 0.2)
        for sign in (-1.0, 1.0):
            foot, hip = sign * (0.09 + step), sign * 0.1
            canvas.polygon(
                (
                    point(side + foot - 0.1, scale, 0.0),
                    point(side + foot + 0.1, scale, 0.0),
                    point(side + hip + 0.11, scale, 0.5 * height),
                    point(side + hip - 0.11, scale, 0.5 * height),
                ),
                trousers,
            )
        self._torso(PERSON, side, scale, (0.46 * height, 0.84 * height), 0.25)
        self._head(PERSON, side, scale, 0.915 * height)

    def _torso(
        self, label: int, side: float, scale: float, span: tuple[float, float], half: float
    ) -> None:
        low, high = span
        colour = self.style.colour(self.dice, "shirt")
        shirt = self._tint(label, colour, 1.0, scale, "person")
        sleeve = self._tint(label, colour, 0.8, scale, "person")
        self._box(side, scale, (-half - 0.06, low + 0.05, half + 0.06, high - 0.06), sleeve)
        self._box(side, scale, (-half + 0.04, low, half - 0.04, high), shirt)

    def _head(self, label: int, side: float, scale: float, up: float) -> None:
        hair, skin = self._paint(label, "hair", scale), self._paint(label, "skin", scale)
        x, y = self.camera.point(side, scale, up)
        r = max(0.14 * scale, 1.2 * self.unit)
        self.canvas.ellipse(x, y - 0.25 * r, r, 1.1 * r, hair)
        self.canvas.ellipse(x, y + 0.2 * r, 0.85 * r, 0.9 * r, skin)

    def _wheels(self, side: float, scale: float, reach: float) -> None:
        canvas, radius = self.canvas, 0.36
        tyre = self._paint(BICYCLE, "tyre", scale)
        gap = self._paint(BICYCLE, "wheel_gap", scale)
        rx = max(radius * min(1.0, reach / 0.5), 0.12) * scale
        for sign in (-1.0, 1.0):
            x, y = self.camera.point(side + sign * reach, scale, radius)
            canvas.ellipse(x, y, rx, radius * scale, tyre)
            canvas.ellipse(x, y, 0.62 * rx, 0.62 * radius * scale, gap)

    def bicycle(self, side: float, scale: float) -> None:
        """A bicycle, turned by some angle."""
        self._bicycle(side, scale, self.dice.uniform(0.3, 0.55))

    def _bicycle(self, side: float, scale: float, reach: float) -> None:
        """Two wheels `reach` metres to either side, a frame, a handlebar."""
        point = self.camera.point
        frame = self._paint(BICYCLE, "bicycle", scale)
        self._wheels(side, scale, reach)
        thick = max(0.09, 1.2 * self.unit / scale)
        low, high = 0.32, 0.86
        self.canvas.polygon(
            (
                point(side - reach, scale, low + thick),
                point(side, scale, low - thick),
                point(side + reach, scale, low + thick),
                point(side + 0.7 * reach, scale, high),
                point(side - 0.4 * reach, scale, high),
            ),
            frame,
        )
        bar = 0.6 * reach
        self._box(side + bar, scale, (-0.12, high, 0.16, high + 2 * thick), frame)

    def rider(self, side: float, scale: float) -> None:
        """Someone on a bicycle, leaning forward."""
        dice, point, canvas = self.dice, self.camera.point, self.canvas
        reach = dice.uniform(0.3, 0.55)
        self._bicycle(side, scale, reach)
        trousers = self._paint(RIDER, "trousers", scale, "person")
        canvas.polygon(
            (
                point(side - 0.02, scale, 0.25),
                point(side + 0.18, scale, 0.25),
                point(side + 0.2, scale, 1.0),
                point(side - 0.3, scale, 1.0),
            ),
            trousers,
        )
        colour = self.style.colour(dice, "vest")
        shirt = self._tint(RIDER, colour, 1.0, scale, "person")
        lean = 0.5 * reach
        canvas.polygon(
            (
                point(side - 0.32, scale, 0.92),
                point(side + 0.16, scale, 0.92),
                point(side + 0.26 + lean, scale, 1.5),
                point(side - 0.28 + lean, scale, 1.5),
            ),
            shirt,
        )
        sleeve = self._tint(RIDER, colour, 0.8, scale, "person")
        canvas.polygon(
            (
                point(side + lean, scale, 1.45),
                point(side + lean + 0.2, scale, 1.45),
                point(side + 0.6 * reach + 0.14, scale, 0.95),
                point(side + 0.6 * reach - 0.06, scale, 0.95),
            ),
            sleeve,
        )
        self._head(RIDER, side + lean + 0.04, scale, 1.64)


class Placement(NamedTuple):
    """One object of a scene, and where it stands."""

    scale: float
    """Pixels per metre: what is larger is nearer, and hides what is not."""
    side: float
    """Metres right of the camera."""
    paint: Callable[[float, float], None]
    """A method of Painter."""
    half: float = 0.4
    """Half the width of its shadow, in metres."""
