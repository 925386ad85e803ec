# SPDX-License-Identifier: Apache-2.0
"""The two looks of `streets`: palettes, the layout's statistics, and the camera's faults."""

from dataclasses import dataclass, field

import numpy as np

from pipa_fast.data.streets_canvas import Canvas, Colour, Dice

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """One domain: colours by kind of surface, and the layout's statistics."""

    number: int
    palette: dict[str, tuple[Colour, ...]]
    jitter: float  # spread of an object's brightness and of its channels
    texture: dict[str, float] = field(default_factory=dict)  # relative amplitude by kind
    horizon: Range = (0.38, 0.46)  # in image heights
    half_road: Range = (3.4, 5.2)  # metres
    sidewalk: Range = (2.0, 3.6)
    building: Range = (8.0, 20.0)  # height
    gap: float = 0.25  # share of the street front that is not built up
    trees: float = 0.5  # chance per place
    parked: float = 0.4
    moving: tuple[int, int] = (0, 3)
    people: tuple[int, int] = (0, 4)
    rider: float = 0.6
    bus: float = 0.45
    sign: float = 0.75
    light: float = 0.6

    def colour(self, dice: Dice, kind: str) -> Colour:
        """A colour of that kind: one of the palette's, jittered."""
        base = dice.choice(self.palette[kind])
        bright = dice.uniform(1.0 - self.jitter, 1.0 + self.jitter)
        half = 0.4 * self.jitter
        return (
            base[0] * bright * dice.uniform(1.0 - half, 1.0 + half),
            base[1] * bright * dice.uniform(1.0 - half, 1.0 + half),
            base[2] * bright * dice.uniform(1.0 - half, 1.0 + half),
        )

    def amplitude(self, kind: str) -> float:
        """How strongly the style's texture shows on that kind."""
        return self.texture.get(kind, 0.0)


SYNTHETIC = Style(
    number=0,
    jitter=0.18,
    palette={
        "road": ((92, 92, 104), (84, 86, 100)),
        "marking": ((250, 250, 250), (255, 220, 60)),
        "kerb": ((225, 225, 225),),
        "sidewalk": ((206, 160, 142), (196, 150, 150)),
        "building": (
            (206, 104, 76),
            (222, 176, 100),
            (190, 170, 190),
            (226, 206, 164),
            (130, 136, 170),
            (150, 110, 90),
        ),
        "window": ((44, 66, 112), (70, 104, 150), (150, 190, 220)),
        "door": ((110, 60, 40),),
        "sky": ((70, 150, 250), (100, 175, 255)),
        "sky_low": ((170, 215, 255),),
        "cloud": ((255, 255, 255),),
        "vegetation": ((44, 168, 52), (70, 190, 60), (30, 140, 60)),
        "trunk": ((120, 74, 40),),
        "pole": ((150, 152, 170), (128, 132, 150)),
        "sign_red": ((236, 24, 30),),
        "sign_blue": ((24, 70, 230),),
        "sign_yellow": ((252, 214, 20),),
        "sign_inner": ((255, 255, 255),),
        "light_box": ((30, 34, 30),),
        "light_rim": ((250, 230, 120),),
        "lamp_red": ((255, 40, 30),),
        "lamp_amber": ((255, 190, 30),),
        "lamp_green": ((40, 255, 110),),
        "lamp_off": ((70, 74, 70),),
        "car": (
            (206, 36, 40),
            (40, 66, 190),
            (236, 200, 50),
            (240, 240, 245),
            (60, 62, 70),
            (150, 154, 166),
        ),
        "glass": ((60, 90, 120),),
        "tyre": ((24, 24, 28),),
        "tail": ((255, 40, 40),),
        "head": ((255, 255, 210),),
        "plate": ((250, 250, 250),),
        "bus": ((240, 180, 40), (210, 40, 60), (230, 226, 210)),
        "skin": ((240, 190, 150), (150, 96, 62)),
        "hair": ((60, 36, 20), (220, 180, 70)),
        "shirt": ((226, 60, 120), (60, 120, 230), (150, 70, 190)),
        "vest": ((255, 120, 10), (190, 255, 30)),
        "trousers": ((40, 50, 150), (60, 60, 90), (120, 60, 110)),
        "bicycle": ((200, 20, 90), (90, 30, 180)),
        "wheel_gap": ((110, 100, 130),),
        "hood": ((40, 44, 70),),
    },
    texture={
        "road": 0.02,
        "sidewalk": 0.03,
        "vegetation": 0.10,
        "building": 0.03,
    },
)

REAL = Style(
    number=1,
    jitter=0.15,
    palette={
        "road": ((104, 102, 100), (96, 96, 98), (110, 106, 102)),
        "marking": ((206, 204, 196), (186, 182, 172)),
        "kerb": ((186, 184, 178),),
        "sidewalk": ((160, 148, 132), (150, 140, 132), (164, 144, 126)),
        "building": (
            (156, 140, 116),
            (132, 104, 86),
            (176, 164, 146),
            (146, 92, 72),
            (186, 168, 128),
        ),
        "window": ((58, 62, 66), (84, 92, 100), (120, 132, 144)),
        "door": ((66, 54, 46), (52, 60, 56)),
        "sky": ((180, 202, 228), (160, 188, 224), (206, 214, 222)),
        "sky_low": ((226, 228, 228),),
        "cloud": ((236, 236, 234),),
        "vegetation": ((70, 92, 48), (56, 76, 42), (92, 102, 52)),
        "trunk": ((74, 64, 54),),
        "pole": ((66, 84, 78), (58, 72, 70)),
        "sign_red": ((190, 44, 44),),
        "sign_blue": ((40, 76, 152),),
        "sign_yellow": ((206, 174, 60),),
        "sign_inner": ((222, 220, 212),),
        "light_box": ((26, 88, 62),),
        "light_rim": ((216, 210, 184),),
        "lamp_red": ((236, 84, 64),),
        "lamp_amber": ((236, 182, 90),),
        "lamp_green": ((110, 226, 170),),
        "lamp_off": ((26, 34, 34),),
        "car": ((42, 44, 48), (156, 160, 164), (208, 208, 204), (54, 66, 86), (88, 90, 92)),
        "glass": ((50, 58, 62), (84, 96, 102)),
        "tyre": ((30, 30, 30),),
        "tail": ((168, 46, 42),),
        "head": ((226, 224, 212),),
        "plate": ((204, 204, 196),),
        "bus": ((212, 196, 150), (170, 62, 50), (80, 124, 132)),
        "skin": ((196, 152, 128), (122, 88, 70)),
        "hair": ((52, 44, 38), (120, 96, 66), (36, 34, 34)),
        "shirt": ((46, 60, 112), (136, 46, 52), (46, 46, 84)),
        "vest": ((206, 172, 62), (206, 118, 58)),
        "trousers": ((44, 50, 80), (52, 44, 62)),
        "bicycle": ((46, 36, 50), (92, 40, 62)),
        "wheel_gap": ((72, 62, 74),),
        "hood": ((52, 52, 56),),
    },
    texture={
        "road": 0.05,
        "sidewalk": 0.07,
        "vegetation": 0.28,
        "building": 0.07,
        "sky": 0.03,
        "car": 0.08,
        "bus": 0.08,
        "person": 0.06,
        "pole": 0.06,
    },
    horizon=(0.36, 0.43),
    half_road=(3.2, 4.6),
    sidewalk=(2.0, 4.2),
    building=(7.0, 17.0),
    gap=0.32,
    trees=0.6,
    parked=0.5,
    moving=(0, 3),
    people=(0, 5),
    rider=0.6,
    bus=0.4,
    sign=0.7,
    light=0.6,
)

STYLES: dict[str, Style] = {"synthetic": SYNTHETIC, "real": REAL}


def texture(canvas: Canvas, dice: Dice, style: Style) -> np.ndarray:
    """The style's surface pattern, float32 [H, W] in -1..1: regular, or noise of three sizes."""
    height, width = canvas.height, canvas.width
    if style.number == SYNTHETIC.number:
        rows = np.arange(height)[:, None] // 3
        return (((rows + np.arange(width) // 3) & 1) * 2 - 1).astype(np.float32)
    total = np.zeros((height, width), np.int32)
    for size, weight in ((8, 2), (4, 2), (2, 3)):
        grid = dice.bytes(height // size + 2, width // size + 2).astype(np.int32) - 128
        fine = np.repeat(np.repeat(grid, size, 0), size, 1)[:height, :width]
        total += weight * fine
    return total.astype(np.float32) / np.float32(7 * 128)


def develop(canvas: Canvas, camera_focal: float, dice: Dice, style: Style) -> np.ndarray:
    """Turn the canvas into an image, uint8 [H, W, 3], with the style's light, air and sensor."""
    index = canvas.index
    background = index < canvas.first_object
    amplitude = np.array(canvas.textures, np.float32)[index]
    gain = np.where(background, canvas.gain, np.float32(1.0))
    gain *= amplitude * texture(canvas, dice, style) + np.float32(1.0)
    planes = np.array(canvas.colours, np.float32).T[:, index]
    planes *= gain
    if style.number == SYNTHETIC.number:
        planes *= np.float32(dice.uniform(0.75, 1.1))
        return _to_bytes(planes)
    scale = np.where(background, canvas.scale, np.array(canvas.scales, np.float32)[index])
    return _photograph(planes, scale, camera_focal, dice)


def _photograph(planes: np.ndarray, scale: np.ndarray, focal: float, dice: Dice) -> np.ndarray:
    """Haze, colour cast, exposure, blur and noise. planes: float32 [3, H, W], 0..255."""
    # Haze: what comes through falls with the distance focal / scale.
    visibility = dice.uniform(80.0, 300.0)  # metres at which half is lost
    through = scale / (scale + np.float32(focal / visibility))
    air = dice.uniform(185.0, 235.0)
    haze = [air * dice.uniform(0.95, 1.05) for _ in range(3)]
    exposure = dice.uniform(0.8, 1.15)
    grey = dice.uniform(0.0, 0.25)
    cast = [exposure * dice.uniform(0.94, 1.06) for _ in range(3)]
    bend = dice.uniform(-0.25, 0.35)
    side = dice.uniform(0.06, 0.2)
    luminance = planes[0] * np.float32(0.3)
    luminance += planes[1] * np.float32(0.6)
    luminance += planes[2] * np.float32(0.1)
    luminance *= np.float32(grey)
    # Three bytes together have a standard deviation of 128.
    noise = dice.bytes(3, 3, *scale.shape)
    grain = np.float32(dice.uniform(1.5, 4.0) / 128.0)
    for channel, plane in enumerate(planes):
        plane *= np.float32(1.0 - grey)
        plane += luminance
        plane -= np.float32(haze[channel])
        plane *= through
        plane += np.float32(haze[channel])
        plane *= np.float32(cast[channel])
        np.minimum(plane, np.float32(255.0), out=plane)
        # A tone curve: v + bend * v * (1 - v) with v = plane / 255.
        curve = plane * np.float32(-bend / 255.0)
        curve += np.float32(1.0 + bend)
        plane *= curve
        plane[:] = _blur(plane, np.float32(side))
        total = np.add(noise[0, channel], noise[1, channel], dtype=np.int16)
        total += noise[2, channel]
        total -= 382
        plane += total * grain
    return _to_bytes(planes)


def _blur(plane: np.ndarray, side: np.float32) -> np.ndarray:
    """Weigh each pixel with its neighbours (side, 1 - 2 side, side), down and across."""
    centre = np.float32(1.0) - np.float32(2.0) * side
    ends = plane * side
    result = plane * centre
    result[1:] += ends[:-1]
    result[:-1] += ends[1:]
    result[0] += ends[0]
    result[-1] += ends[-1]
    ends = result * side
    result *= centre
    result[:, 1:] += ends[:, :-1]
    result[:, :-1] += ends[:, 1:]
    result[:, 0] += ends[:, 0]
    result[:, -1] += ends[:, -1]
    return result


def _to_bytes(planes: np.ndarray) -> np.ndarray:
    """Round [3, H, W] to uint8 [H, W, 3], saturating."""
    np.rint(planes, out=planes)
    np.maximum(planes, np.float32(0.0), out=planes)
    np.minimum(planes, np.float32(255.0), out=planes)
    return np.ascontiguousarray(planes.astype(np.uint8).transpose(1, 2, 0))
