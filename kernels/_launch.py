# SPDX-License-Identifier: Apache-2.0
"""What all Triton kernels share: tiles by chip, padded depth, precision of products, the launch."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = 1.4426950408889634
LN2 = tl.constexpr(0.6931471805599453)
# Shared memory that one block may have [bytes], for each class of chips that tables of tiles know:
# CUDA C++ programming guide, technical specifications per compute capability.
SHARED_MEMORY = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024}
# A product and a sum become one instruction; Triton 3.10 stops doing so unless asked.
OPTIONS = {"enable_fp_fusion": True}


class Tile(NamedTuple):
    """How a kernel cuts its problem, and with how many warps and loads in flight."""

    block_m: int  # rows that a program keeps
    block_n: int  # columns that it meets at a time
    warps: int
    stages: int
    # Of a thread, at most. Where none is given, ptxas may spill a few to fit one more block.
    registers: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The compiler's options."""
        limit = {"maxnreg": self.registers} if self.registers else {}
        return {"num_warps": self.warps, "num_stages": self.stages, **limit, **OPTIONS}


class TileRow(NamedTuple):
    """One row of an op's table: what shape it is for, the tile, and the reason for it."""

    chip: int  # a key of SHARED_MEMORY
    depth: int  # padded columns of the features, at most
    width: int  # bytes of an element
    tile: Tile
    why: str


def capability(device: torch.device) -> int:
    """Return a GPU's compute capability as 10·major + minor; 80 for a CPU, which interprets."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def chip(capability: int) -> int:
    """Return the class of chips, a key of SHARED_MEMORY, whose tiles fit a compute capability.

    86 and 120 have as little shared memory as 89. What came after 90 and has as much as it takes
    its tiles.
    """
    if capability in (80, 87):
        return 80
    return 90 if 90 <= capability < 120 else 89


def choose_tile(
    table: tuple[TileRow, ...], capability: int, depth: int, dtype: torch.dtype
) -> Tile:
    """Return the tile of the first row that is for this chip and dtype and deep enough."""
    for row in table:
        if row.chip == chip(capability) and row.width == dtype.itemsize and row.depth >= depth:
            return row.tile
    raise AssertionError(f"no tile for {capability}, depth {depth}, {dtype}")


def padded_depth(depth: int) -> int:
    """Return the columns that kernels see, a power of two of at least 16; the added ones are 0.

    Products are taken 16 deep at least, and index ranges are powers of two.
    """
    return max(16, triton.next_power_of_2(depth))


def precision(dtype: torch.dtype) -> str:
    """Return tl.dot's input_precision: TF32 exactly where torch takes it for its own products.

    This new name of torch.backends.cuda.matmul.allow_tf32 follows the old one and
    torch.set_float32_matmul_precision too; the old one raises once the new is set.
    """
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if dtype == torch.float32 and tf32 else "ieee"


def launch(
    kernel: Any, grid: tuple[int, ...], tile: Tile, *arguments: Any, **constants: Any
) -> None:
    """Start a kernel's programs on the arguments' device; an empty grid starts none.

    Every launch of an op goes through here, so that `bench.aot` compiles what ops would launch.
    """
    if all(grid):
        kernel[grid](*arguments, **constants, **tile.options)


def on_device(tensor: Tensor) -> Any:
    """Make a tensor's GPU the current one, which is where Triton launches."""
    return torch.cuda.device_of(tensor)
