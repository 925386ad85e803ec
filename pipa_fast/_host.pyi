# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable
from typing import TypedDict

class Compiled(TypedDict):
    isa: list[str]
    version: str
    compiler: str
    cuda: bool

BLOCK_ROWS: int
MAX_GROUPS: int

def cpu_features() -> dict[str, bool]: ...
def compiled() -> Compiled: ...
def best_isa() -> str: ...
def schedule(
    groups: int, wanted: Callable[[int, int], bool]
) -> list[tuple[int, int, int, int]]: ...
def order_by_class(
    labels: list[int], ignore_index: int
) -> tuple[list[int], list[int], list[int]]: ...
