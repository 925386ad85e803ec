# SPDX-License-Identifier: Apache-2.0
"""The one shape of a complaint about a bad argument."""

import difflib
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any


def require(ok: bool, argument: str, value: Any, expected: str) -> None:
    """Raise a ValueError that names the argument, what was expected and what came."""
    if not ok:
        raise ValueError(f"{argument} must be {expected}; got {value!r}")


def is_below(name: str) -> bool:
    """Whether a path leads below the folder that it is joined to, and nowhere else."""
    path = PurePath(name)
    leads_out = path.is_absolute() or ".." in path.parts or "\0" in name
    return bool(path.parts) and not leads_out


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the known name that is nearest; "" where none is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    return f" (did you mean {near[0]!r}?)" if near else ""


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
