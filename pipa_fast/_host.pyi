# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable
from types import ModuleType
from typing import TypedDict

class Compiled(TypedDict):
    isa: list[str]
    version: str
    compiler: str

BLOCK_ROWS: int
MAX_GROUPS: int
cuda: ModuleType

def cpu_features() -> dict[str, bool]: ...
def compiled() -> Compiled: ...
def best_isa() -> str: ...
def schedule(
    groups: int, wanted: Callable[[int, int], bool]
) -> list[tuple[int, int, int, int, int]]: ...
def visited_pairs(blocks: int, threads: int) -> list[tuple[int, int]]: ...
def order_by_class(
    labels: list[int], ignore_index: int
) -> tuple[list[int], list[int], list[int]]: ...
