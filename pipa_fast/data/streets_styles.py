# SPDX-License-Identifier: Apache-2.0
"""The two looks of `streets`: palettes, how often things stand in a scene, and the camera's faults."""

from dataclasses import dataclass, field

import numpy as np

from .streets_canvas import Canvas, Colour, Dice

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
    rider: float = 0.4
    bus: float = 0.3
    sign: float = 0.5
    light: float = 0.4

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
    jitter=0.08,
    palette={
        "road": ((92, 92, 104), (84, 86, 100)),
        "marking": ((250, 250, 250), (255, 220, 60)),
        "kerb": ((225, 225, 225),),
        "sidewalk": ((206, 160, 142), (196, 150, 150)),
        "building": ((214, 96, 62), (232, 176, 84), (196, 92, 130), (226, 200, 150), (120, 130, 190)),
        "window": ((40, 70, 140), (60, 110, 190)),
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
        "lamp_red": ((255, 40, 30),),
        "lamp_amber": ((255, 190, 30),),
        "lamp_green": ((40, 255, 110),),
        "lamp_off": ((70, 74, 70),),
        "car": ((226, 30, 36), (30, 60, 214), (250, 208, 30), (240, 240, 245), (30, 180, 190), (240, 120, 20)),
        "glass": ((60, 90, 120),),
        "tyre": ((24, 24, 28),),
        "tail": ((255, 40, 40),),
        "head": ((255, 255, 210),),
        "plate": ((250, 250, 250),),
        "bus": ((250, 180, 20), (220, 30, 60), (40, 160, 80)),
        "skin": ((240, 190, 150), (150, 96, 62)),
        "hair": ((60, 36, 20), (220, 180, 70)),
        "shirt": ((250, 60, 160), (60, 220, 230), (250, 250, 70), (150, 60, 220), (255, 255, 255)),
        "trousers": ((40, 50, 150), (60, 60, 70), (140, 90, 50)),
        "bicycle": ((200, 20, 60), (20, 90, 200), (20, 20, 24)),
        "wheel_gap": ((140, 140, 150),),
        "hood": ((40, 44, 90),),
    },
    texture={
        "road": 0.02,
        "sidewalk": 0.06,
        "vegetation": 0.12,
        "building": 0.05,
    },
)

REAL = Style(
    number=1,
    jitter=0.22,
    palette={
        "road": ((112, 108, 104), (98, 98, 100), (124, 118, 112)),
        "marking": ((206, 204, 196), (186, 182, 172)),
        "kerb": ((150, 148, 142),),
        "sidewalk": ((142, 134, 124), (128, 122, 118), (150, 132, 118)),
        "building": (
            (156, 144, 124), (122, 102, 88), (172, 166, 154), (98, 92, 90), (140, 90, 72), (186, 172, 138),
        ),
        "window": ((58, 62, 66), (84, 92, 100), (120, 132, 144)),
        "door": ((66, 54, 46), (52, 60, 56)),
        "sky": ((196, 206, 216), (166, 188, 216), (214, 214, 210)),
        "sky_low": ((226, 228, 228),),
        "cloud": ((236, 236, 234), (190, 194, 200)),
        "vegetation": ((72, 88, 50), (56, 68, 44), (96, 98, 54), (88, 80, 48)),
        "trunk": ((74, 64, 54),),
        "pole": ((104, 104, 102), (82, 86, 84), (128, 126, 120)),
        "sign_red": ((176, 48, 46),),
        "sign_blue": ((44, 74, 136),),
        "sign_yellow": ((206, 174, 60),),
        "sign_inner": ((222, 220, 212),),
        "light_box": ((44, 46, 44), (58, 60, 52)),
        "lamp_red": ((236, 84, 64),),
        "lamp_amber": ((236, 182, 90),),
        "lamp_green": ((110, 226, 170),),
        "lamp_off": ((62, 60, 58),),
        "car": ((42, 44, 48), (156, 160, 164), (208, 208, 204), (54, 66, 94), (112, 44, 42), (92, 94, 94)),
        "glass": ((50, 58, 62), (84, 96, 102)),
        "tyre": ((30, 30, 30),),
        "tail": ((168, 46, 42),),
        "head": ((226, 224, 212),),
        "plate": ((204, 204, 196),),
        "bus": ((206, 196, 168), (168, 62, 52), (88, 110, 138), (192, 196, 196)),
        "skin": ((196, 152, 128), (122, 88, 70)),
        "hair": ((52, 44, 38), (120, 96, 66), (36, 34, 34)),
        "shirt": ((56, 60, 74), (110, 52, 50), (142, 140, 136), (38, 38, 42), (84, 94, 82), (170, 160, 140)),
        "trousers": ((48, 52, 66), (40, 40, 42), (90, 82, 70)),
        "bicycle": ((46, 46, 48), (88, 46, 44), (66, 76, 88)),
        "wheel_gap": ((92, 90, 88),),
        "hood": ((52, 52, 56),),
    },
    texture={
        "road": 0.10,
        "sidewalk": 0.14,
        "vegetation": 0.42,
        "building": 0.12,
        "sky": 0.03,
        "car": 0.08,
        "bus": 0.08,
        "person": 0.12,
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
    rider=0.45,
    bus=0.25,
    sign=0.55,
    light=0.4,
)

STYLES: dict[str, Style] = {"synthetic": SYNTHETIC, "real": REAL}


def texture(canvas: Canvas, dice: Dice, style: Style) -> np.ndarray:
    """The style's surface pattern, float32 [H, W] in -1..1: regular, or noise of three sizes."""
    height, width = canvas.height, canvas.width
    if style.number == SYNTHETIC.number:
        rows = np.arange(height)[:, None] >> 1
        return (((rows + (np.arange(width) >> 1)) & 1) * 2 - 1).astype(np.float32)
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
    image = np.array(canvas.colours, np.float32)[index]
    image *= gain[..., None]
    if style.number == SYNTHETIC.number:
        return to_bytes(image)
    scale = np.where(background, canvas.scale, np.array(canvas.scales, np.float32)[index])
    return _photograph(image, scale, camera_focal, dice)


def _photograph(image: np.ndarray, scale: np.ndarray, focal: float, dice: Dice) -> np.ndarray:
    """Haze, colour cast, exposure, blur and noise. image: float32 [H, W, 3], 0..255."""
    height, width = scale.shape
    # Haze: what comes through falls with the distance focal / scale.
    visibility = dice.uniform(40.0, 220.0)  # metres at which half is lost
    through = scale / (scale + np.float32(focal / visibility))
    air = dice.uniform(185.0, 235.0)
    haze = [air * dice.uniform(0.95, 1.05) for _ in range(3)]
    exposure = dice.uniform(0.65, 1.2)
    grey = dice.uniform(0.0, 0.35)
    cast = [exposure * dice.uniform(0.86, 1.14) for _ in range(3)]
    bend = dice.uniform(-0.25, 0.35)
    luminance = image[..., 0] * np.float32(0.3)
    luminance += image[..., 1] * np.float32(0.6)
    luminance += image[..., 2] * np.float32(0.1)
    luminance *= np.float32(grey)
    image *= np.float32(1.0 - grey)
    image += luminance[..., None]
    image -= np.array(haze, np.float32)
    image *= through[..., None]
    image += np.array(haze, np.float32)
    image *= np.array(cast, np.float32)
    np.minimum(image, np.float32(255.0), out=image)
    # A tone curve: v + bend * v * (1 - v) with v = image / 255.
    curve = image * np.float32(-bend / 255.0)
    curve += np.float32(1.0 + bend)
    image *= curve
    image = _blur(image, np.float32(dice.uniform(0.10, 0.26)))
    noise = dice.bytes(3, height, width, 3).astype(np.int16)
    grain = (noise[0] + noise[1] + noise[2] - 382).astype(np.float32)
    # Three bytes together have a standard deviation of 128.
    image += grain * np.float32(dice.uniform(2.0, 8.0) / 128.0)
    return to_bytes(image)


def _blur(image: np.ndarray, side: np.float32) -> np.ndarray:
    """Weigh each pixel with its neighbours (side, 1 - 2 side, side), down and across."""
    centre = np.float32(1.0) - np.float32(2.0) * side
    for axis in (0, 1):
        moved = np.moveaxis(image, axis, 0)
        result = moved * centre
        ends = moved * side
        result[1:] += ends[:-1]
        result[:-1] += ends[1:]
        result[0] += ends[0]
        result[-1] += ends[-1]
        image = np.moveaxis(result, 0, axis)
    return image


def to_bytes(image: np.ndarray) -> np.ndarray:
    """Round to uint8, saturating."""
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
