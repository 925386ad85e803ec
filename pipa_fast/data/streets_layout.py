# SPDX-License-Identifier: Apache-2.0
"""The fixed part of a street scene: sky, street fronts, ground, and how light falls on them."""

from dataclasses import dataclass

import numpy as np

from pipa_fast.data.streets_canvas import Camera, Canvas, Dice
from pipa_fast.data.streets_styles import SYNTHETIC, Style

ROAD, SIDEWALK, BUILDING, VEGETATION, SKY = 0, 1, 2, 8, 10

_FAR = 110.0  # metres, where the street ends


@dataclass(slots=True)
class Street:
    """Where things may stand, in metres right of the camera."""

    kerb: tuple[float, float]  # left (negative), right
    front: tuple[float, float]  # building lines
    sunny: int  # 0: the left front is in the sun, 1: the right one


def draw_street(canvas: Canvas, camera: Camera, dice: Dice, style: Style) -> Street:
    """Paint everything that does not stand on the street, far to near."""
    half, offset = dice.uniform(*style.half_road), dice.uniform(-1.4, 1.4)
    kerb = (-half - offset, half - offset)
    front = (kerb[0] - dice.uniform(*style.sidewalk), kerb[1] + dice.uniform(*style.sidewalk))
    street = Street(kerb=kerb, front=front, sunny=dice.integer(0, 1))
    _sky(canvas, camera, dice, style)
    _street_end(canvas, camera, dice, style)
    _ground(canvas, camera, dice, style, street)
    for side in (0, 1):
        _front(canvas, camera, dice, style, street, side)
    canvas.first_object = len(canvas.labels)
    return street


def _sky(canvas: Canvas, camera: Camera, dice: Dice, style: Style) -> None:
    high, low = style.colour(dice, "sky"), style.colour(dice, "sky_low")
    bands = 12
    step = camera.horizon / bands
    for band in range(bands):
        t = band / (bands - 1)
        colour = tuple(a + (b - a) * t for a, b in zip(high, low, strict=True))
        sky = canvas.material(SKY, colour, 0.0, style.amplitude("sky"))  # type: ignore[arg-type]
        bottom = canvas.height if band == bands - 1 else (band + 1) * step
        canvas.rectangle(0, band * step, canvas.width, bottom, sky)
    unit = canvas.height / 128
    cloud = canvas.material(SKY, style.colour(dice, "cloud"), 0.0, style.amplitude("sky"))
    for _ in range(dice.integer(0, 4)):
        x, y = dice.uniform(0.2, 0.8) * canvas.width, dice.uniform(0.0, 0.7) * camera.horizon
        for _ in range(3):
            rx, ry = dice.uniform(6, 18) * unit, dice.uniform(2, 5) * unit
            canvas.ellipse(x + dice.uniform(-12, 12) * unit, y, rx, ry, cloud)
    # Air between us and the sky: as much as some 300 m of it.
    canvas.scale[:] = camera.focal / 300.0


def _street_end(canvas: Canvas, camera: Camera, dice: Dice, style: Style) -> None:
    """What closes the street: a row of blocks and trees some 110 m away."""
    scale = camera.focal / _FAR
    base = camera.horizon + camera.height * scale
    first = len(canvas.labels)
    x = 0.0
    while x < canvas.width:
        metres, green = dice.uniform(8.0, 20.0), dice.chance(style.gap + 0.15)
        label, kind = (VEGETATION, "vegetation") if green else (BUILDING, "building")
        up = dice.uniform(3.0, 8.0) if green else dice.uniform(*style.building)
        block = canvas.material(label, style.colour(dice, kind), scale, style.amplitude(kind))
        right = x + metres * scale
        if green:
            for _ in range(3):
                rx = dice.uniform(0.3, 0.6) * metres * scale
                cx = dice.uniform(x, right)
                canvas.ellipse(cx, base - up * 0.4 * scale, rx, up * 0.6 * scale, block)
            canvas.rectangle(x, base - up * 0.5 * scale, right, base, block)
        else:
            canvas.rectangle(x, base - up * scale, right, base, block)
        x = right
    np.copyto(canvas.scale, np.float32(scale), where=canvas.index >= first)


def _ground(canvas: Canvas, camera: Camera, dice: Dice, style: Style, street: Street) -> None:
    """Road with markings, kerbs and sidewalks below the horizon."""
    top = int(camera.horizon + camera.height * camera.focal / _FAR) + 1
    rows = canvas.rows[top:]
    scale = (rows - camera.horizon) / camera.height  # [h, 1]
    along = camera.focal / scale
    side = (canvas.columns - camera.x) / scale  # [h, W] metres
    label_kind = ((ROAD, "road"), (SIDEWALK, "sidewalk"), (ROAD, "marking"), (SIDEWALK, "kerb"))
    road, walk, mark, kerb = (
        canvas.material(label, style.colour(dice, kind), 0.0, style.amplitude(kind))
        for label, kind in label_kind
    )
    left, right = street.kerb
    index = np.where((side > left) & (side < right), np.uint16(road), np.uint16(walk))
    for edge, sign in ((left, -1.0), (right, 1.0)):
        out = (side - edge) * sign
        index[(out >= 0.0) & (out < 0.18)] = kerb
    if style.number == SYNTHETIC.number:
        # Paving slabs, as a renderer tiles them.
        slabs = ((along % 2.0) < 1.0) ^ ((side % 2.0) < 1.0)
        canvas.gain[top:][(index == walk) & slabs] = 0.92
    lanes = 2 if right - left < 8.0 else dice.integer(2, 3)
    dash, phase = dice.uniform(4.0, 8.0), dice.uniform(0.0, 8.0)
    dashes = ((along + phase) % dash) < 0.5 * dash
    worn = 0.11 if dice.chance(0.85) else 0.0
    for lane in range(1, lanes):
        at = left + (right - left) * lane / lanes
        index[(np.abs(side - at) < worn) & dashes] = mark
    if dice.chance(0.5):
        at = 0.35
        index[(np.abs(side - (left + at)) < 0.08) | (np.abs(side - (right - at)) < 0.08)] = mark
    if dice.chance(0.25):
        near = dice.uniform(7.0, 22.0)
        stripes = (along > near) & (along < near + 3.0) & ((side % 1.0) < 0.5)
        index[stripes & (side > left) & (side < right)] = mark
    canvas.index[top:] = index
    canvas.scale[top:] = scale
    if style.number != SYNTHETIC.number:
        _cast_shadows(canvas.gain[top:], side, along, dice, street)


def _cast_shadows(
    gain: np.ndarray, side: np.ndarray, along: np.ndarray, dice: Dice, street: Street
) -> None:
    """Shadows of the street fronts across the ground, with gaps where the light comes through."""
    if dice.chance(0.35):
        return  # overcast
    depth, reach = dice.uniform(0.5, 0.75), dice.uniform(0.15, 0.9)
    width = street.front[1] - street.front[0]
    pitch, gap, slant = dice.uniform(12.0, 30.0), dice.uniform(2.0, 8.0), dice.uniform(-0.8, 0.8)
    lit = ((along + slant * side) % pitch) < gap
    # The sunny front faces the sun, so that the other one casts the shadow.
    if street.sunny == 1:
        dark = side < street.front[0] + reach * width
    else:
        dark = side > street.front[1] - reach * width
    np.multiply(gain, np.float32(depth), out=gain, where=dark & ~lit)


def _front(
    canvas: Canvas, camera: Camera, dice: Dice, style: Style, street: Street, side: int
) -> None:
    """One side of the street: a plane of buildings and greenery that runs to the street's end."""
    line = street.front[side]
    end = camera.x + line * camera.focal / _FAR
    limit = min(max(round(end), 0), canvas.width)
    span = slice(0, limit) if side == 0 else slice(limit, canvas.width)
    columns = canvas.columns[span]
    if columns.size == 0:
        return
    scale = np.maximum((columns - camera.x) / line, camera.focal / _FAR)
    along = camera.focal / scale
    edges, heights, fills, opens, kinds = _blocks(canvas, dice, style)
    block = np.minimum(np.searchsorted(edges, along, side="right"), len(heights) - 1)
    rough = (dice.bytes(canvas.width)[span].astype(np.float64) - 127.5) / 127.5
    green = kinds[block] == VEGETATION
    top = heights[block] + np.where(green, 0.5 * rough, 0.0)
    up = camera.height + (camera.horizon - canvas.rows) / scale  # [H, w] metres
    wall = (up > 0.0) & (up <= top)
    pitch, floor = dice.uniform(2.2, 3.6), dice.uniform(2.8, 3.6)
    glazed = ((along % pitch) < 0.55 * pitch) & ~green & (scale > 3.0 * canvas.height / 128)
    level = up % floor
    panes = (level > 0.35 * floor) & (level < 0.85 * floor) & (up < top - 0.5) & glazed
    index = np.where(panes, opens[block], fills[block])
    np.copyto(canvas.index[:, span], index, where=wall)
    np.copyto(canvas.scale[:, span], scale.astype(np.float32), where=wall)
    if style.number != SYNTHETIC.number:
        light = 1.12 if side == street.sunny else dice.uniform(0.55, 0.85)
    else:
        light = 1.0 if side == street.sunny else 0.86
    np.copyto(canvas.gain[:, span], np.float32(light), where=wall)


def _blocks(
    canvas: Canvas, dice: Dice, style: Style
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Divide a street front: far edges (m), heights (m), materials of wall and window, labels."""
    edges, heights, fills, opens, kinds = [], [], [], [], []
    z = dice.uniform(0.0, 6.0)
    while z < _FAR or not edges:
        green = dice.chance(style.gap)
        z += dice.uniform(5.0, 14.0) if green else dice.uniform(8.0, 22.0)
        label, kind = (VEGETATION, "vegetation") if green else (BUILDING, "building")
        edges.append(z)
        kinds.append(label)
        heights.append(dice.uniform(1.2, 6.0) if green else dice.uniform(*style.building))
        fills.append(canvas.material(label, style.colour(dice, kind), 0, style.amplitude(kind)))
        window = fills[-1] if green else canvas.material(label, style.colour(dice, "window"))
        opens.append(window)
    return (
        np.array(edges),
        np.array(heights),
        np.array(fills, np.uint16),
        np.array(opens, np.uint16),
        np.array(kinds),
    )
