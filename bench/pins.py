# SPDX-License-Identifier: Apache-2.0
"""The pins under which everything is installed beside a torch that is installed already.

    python -m bench.pins constraints.txt >.venv/constraints.txt      # `make setup`

torch stays as it is. A CUDA build of it asks for the very Triton it was made with, and some for an
older setuptools: where it does not admit a pin, that pin is left out, and pip goes by torch's
requirement and the range in pyproject.toml. Needs nothing but pip.
"""

import importlib.metadata
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path


def read_pins(path: Path) -> dict[str, str]:
    """Return the versions of a file of NAME==VERSION lines."""
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    pairs = (line.partition("==") for line in lines if line)
    return {name.strip(): version.strip() for name, _, version in pairs}


def plain(name: str) -> str:
    """Return a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def beside_torch(pins: Mapping[str, str]) -> Iterator[str]:
    """Yield NAME==VERSION lines: the installed torch, and the pins that it admits.

    For a process of its own: with pip imported, setuptools cannot be any more.
    """
    from pip._vendor.packaging.requirements import Requirement  # no other is there yet

    asked = [
        one
        for one in map(Requirement, importlib.metadata.requires("torch") or ())
        if one.marker is None or one.marker.evaluate({"extra": ""})
    ]
    yield "torch==" + importlib.metadata.version("torch").split("+")[0]
    for name, version in pins.items():
        ranges = [one.specifier for one in asked if plain(one.name) == plain(name)]
        if name != "torch" and all(r.contains(version, prereleases=True) for r in ranges):
            yield f"{name}=={version}"


if __name__ == "__main__":
    print(*beside_torch(read_pins(Path(sys.argv[1]))), sep="\n")
