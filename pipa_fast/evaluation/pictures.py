# SPDX-License-Identifier: Apache-2.0
"""Where pictures to segment come from: an image, a folder of images, or a video's frames."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipa_fast.data.files import SUFFIXES, named_as_image, read_image


class Picture(NamedTuple):
    """A picture that is read when it is its turn."""

    name: str
    """Path of its outputs inside the folder they go to, without a suffix: "aachen/scene_1"."""
    read: Callable[[], np.ndarray]
    """Return RGB [H, W, 3] uint8, or raise a ValueError."""


def is_video(source: Path) -> bool:
    """Whether `source` is taken for a video: a file that does not end as an image does."""
    return source.is_file() and source.suffix.lower() not in SUFFIXES


def find_pictures(source: Path, *, recursive: bool = False) -> list[Picture]:
    """Return the PNG and JPEG images of a folder by name, or the one that `source` is.

    With `recursive`, folders inside it are searched as well, links to folders left aside.

    Raises:
        ValueError: nothing there, or two images that would be written to one file.
    """
    if source.is_file():
        return [Picture(source.stem, partial(read_image, source))]
    if not source.is_dir():
        raise ValueError(f"source must be a directory of images or a file; got {str(source)!r}")
    found = source.rglob("*") if recursive else source.iterdir()
    paths = sorted(p for p in found if named_as_image(p) and p.is_file())
    if not paths:
        hint = "" if recursive else "; --recursive looks into its folders too"
        raise ValueError(f"{str(source)!r} must hold {', '.join(SUFFIXES)} files{hint}")
    names: dict[str, Path] = {}
    for path in paths:
        name = path.relative_to(source).with_suffix("").as_posix()
        if name in names:
            raise ValueError(
                f"{names[name].name} and {path.name} would share an output; rename one"
            )
        names[name] = path
    return [Picture(name, partial(read_image, path)) for name, path in names.items()]


def read_frames(path: Path) -> Iterator[Picture]:
    """Yield the frames of a video's first picture stream, upright, named NAME_000000 and so on.

    Needs PyAV, which brings ffmpeg's libraries. Frames are decoded one by one as they are asked
    for, since an hour of video fits no memory.

    Raises:
        ValueError: PyAV is not installed, or the file cannot be decoded (any further).
    """
    try:
        import av  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            f"{path} is no image, and to read it as a video PyAV is needed: pip install av"
        ) from error
    number = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError("it has no pictures")
            for frame in container.decode(video=0):
                # phones store frames lying, and how far to turn them: degrees to the left
                turns = round(frame.rotation / 90)
                pixels = np.rot90(frame.to_ndarray(format="rgb24"), turns)
                yield Picture(f"{path.stem}_{number:06d}", partial(np.asarray, pixels))
                number += 1
    except (av.FFmpegError, ValueError) as error:
        after = f" after {number} frames" if number else ""
        raise ValueError(f"{path} cannot be read as a video{after}: {error}") from error
