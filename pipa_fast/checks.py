# SPDX-License-Identifier: Apache-2.0
"""The one shape of a complaint about a bad argument."""

from typing import Any


def require(ok: bool, argument: str, value: Any, expected: str) -> None:
    """Raise a ValueError that names the argument, what was expected and what came."""
    if not ok:
        raise ValueError(f"{argument} must be {expected}; got {value!r}")
