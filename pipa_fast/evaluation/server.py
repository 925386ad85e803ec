# SPDX-License-Identifier: Apache-2.0
"""Label images as the Cityscapes test server takes them.

The server wants, for each image of the test set, one 8-bit PNG of label ids (not train ids) at the
image's size, anywhere in the archive, whose name begins with the image's CITY_SEQUENCE_FRAME. Two
files that begin with the same one are an error there, so overlays must not lie beside them.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipa_fast.data.labels import to_label_ids

_SCENE = re.compile(r"[^_/]+_\d{6}_\d{6}(?![^_])")


def scene_of(name: str) -> str | None:
    """Return the CITY_SEQUENCE_FRAME that a file's stem begins with, None where it does not."""
    found = _SCENE.match(name)
    return found and found.group()


def check_names(names: Sequence[str], out: Path) -> dict[str, Path]:
    """Return the label image to write for each of `names`, files' stems with their folders.

    Raises:
        ValueError: names without CITY_SEQUENCE_FRAME, two with the same, or a PNG left in `out`
            that the server would take for one of them.
    """
    stems = {name: name.rpartition("/")[2] for name in names}
    wrong = [name for name, stem in stems.items() if scene_of(stem) is None]
    if wrong:
        raise ValueError(
            "names must begin with CITY_SEQUENCE_FRAME, as berlin_000000_000019_leftImg8bit does; "
            f"{len(wrong)} do not: {_few(wrong)}"
        )
    taken: dict[str, str] = {}
    for name, stem in stems.items():
        other = taken.setdefault(scene_of(stem) or "", name)
        if other != name:
            raise ValueError(f"{other} and {name} are of one scene; the server takes one file each")
    paths = {name: out / f"{stem}.png" for name, stem in stems.items()}
    written = set(paths.values())
    left = [
        path
        for path in sorted(out.rglob("*.png"))
        if scene_of(path.stem) in taken and path not in written
    ]
    if left:
        raise ValueError(
            f"{out} must hold no other PNG of the same scenes, which the server would refuse; "
            f"remove {_few([str(path) for path in left])}"
        )
    return paths


def write_label_ids(path: Path, labels: np.ndarray) -> None:
    """Write train ids [H, W] uint8 as an 8-bit PNG of Cityscapes' label ids."""
    Image.fromarray(to_label_ids(labels)).save(path)


def _few(names: Sequence[str], shown: int = 5) -> str:
    """Return the first names, and how many there are beside them."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
