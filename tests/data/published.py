# SPDX-License-Identifier: Apache-2.0
"""Small datasets in the published layouts, for the tests."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (8, 12)


def image_file(path: Path, value: int = 100, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)
    return path


def label_file(path: Path, ids: list[int], size: tuple[int, int] = SIZE) -> Path:
    """Columns of ids, in turn, in one channel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    row = np.resize(np.array(ids, np.uint8), size[1])
    Image.fromarray(np.tile(row, (size[0], 1))).save(path)
    return path


def wide_label_file(path: Path, ids: list[int], size: tuple[int, int] = SIZE) -> Path:
    """The same as SYNTHIA has it: three channels of 16 bits, class, instance and nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((*size, 3), ">u2")
    pixels[..., 0] = np.resize(np.array(ids), size[1])
    pixels[..., 1] = 300
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    return png_file(path, size, 16, zlib.compress(rows))


def png_file(path: Path, size: tuple[int, int], bits: int, data: bytes) -> Path:
    """A PNG of three channels, whose data may be wrong."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", size[1], size[0], bits, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def make(name: str, root: Path, split: str = "train") -> Path:
    """Write two images of a dataset whose labels are, column by column, road, car and no class."""
    part = "training" if split == "train" else "validation"
    for i in range(2):
        files = {
            "gta5": (f"images/0000{i}.png", f"labels/0000{i}.png", [7, 26, 34]),
            "synthia": (f"RGB/000000{i}.png", f"GT/LABELS/000000{i}.png", [3, 8, 0]),
            "cityscapes": (
                f"leftImg8bit/{split}/ulm/ulm_00000{i}_000019_leftImg8bit.png",
                f"gtFine/{split}/ulm/ulm_00000{i}_000019_gtFine_labelIds.png",
                [7, 26, 1],
            ),
            "acdc": (
                f"rgb_anon/fog/{split}/GOPR1/GOPR1_{i}_rgb_anon.png",
                f"gt/fog/{split}/GOPR1/GOPR1_{i}_gt_labelTrainIds.png",
                [0, 13, 255],
            ),
            "dark_zurich": (
                f"rgb_anon/{split}/night/GOPR2/GOPR2_{i}_rgb_anon.png",
                f"gt/{split}/night/GOPR2/GOPR2_{i}_gt_labelTrainIds.png",
                [0, 13, 255],
            ),
            "bdd100k": (
                f"images/10k/{split}/a-{i}.jpg",
                f"labels/sem_seg/masks/{split}/a-{i}.png",
                [0, 13, 255],
            ),
            "own": (
                f"images/{split}/o{i}.{'png' if i else 'JPG'}",
                f"labels/{split}/o{i}.png",
                [0, 13, 255],
            ),
            "mapillary": (f"{part}/images/m_{i}.jpg", f"{part}/labels/m_{i}.png", [13, 55, 65]),
        }
        image, label, ids = files[name]
        image_file(root / image, 100 + i)
        if name == "dark_zurich" and split == "train":
            continue
        write = wide_label_file if name == "synthia" else label_file
        write(root / label, ids)
    return root
