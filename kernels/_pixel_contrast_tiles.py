# SPDX-License-Identifier: Apache-2.0
"""Tiles of pixel contrast's Triton kernels, by chip, depth and bytes of an element.

`python -m bench.aot` shows what each takes of its chip, and fails where one spills; docs/triton.md
holds all of them. Which tile is fastest was not tried on a GPU. Float32 without TF32 is computed
outside of the tensor cores, which needs small tiles, and so many registers that ptxas would spill
some to fit one more block: these tiles say how many a thread may have.
"""

from pipa_fast.kernels._launch import Tile, TileRow

_SMALLER = (80, 89)  # one set for both, within the 99 KiB of the second


def _rows(chips: tuple[int, ...], depth: int, width: int, tile: Tile, why: str) -> list[TileRow]:
    return [TileRow(chip, depth, width, tile, why) for chip in chips]


# sum_apart_kernel: two blocks of 8 warps fit a multiprocessor where 128 registers and half of the
# shared memory do, and one computes exponentials while the other multiplies.
APART = (
    *_rows((90,), 64, 2, Tile(128, 128, 8, 3), "two blocks: 114 registers, 64 KiB"),
    *_rows((90,), 128, 2, Tile(128, 128, 8, 2), "two blocks: 114 registers, 96 KiB"),
    *_rows((90,), 256, 2, Tile(64, 64, 4, 2), "two blocks: 96 KiB; 128 rows need 128 KiB"),
    *_rows((90,), 512, 2, Tile(64, 32, 4, 2), "two stages; 64 columns need 192 KiB"),
    *_rows(_SMALLER, 128, 2, Tile(128, 64, 8, 3), "two blocks on sm_80: 126 registers, 65 KiB"),
    *_rows(_SMALLER, 256, 2, Tile(128, 64, 8, 2), "97 KiB of sm_89's 99; 96 registers"),
    *_rows(_SMALLER, 512, 2, Tile(64, 32, 4, 2), "96 KiB of sm_89's 99"),
    *_rows((80, 89, 90), 512, 4, Tile(32, 16, 4, 2, 168), "96 KiB of sm_89's 99; 3 blocks at 256"),
)
# sum_mixed_kernel and positives_kernel: few tiles, so that small ones, which hold fewer pairs that
# are not wanted, and many programs are better.
MIXED = (
    *_rows((80, 89, 90), 128, 2, Tile(64, 64, 4, 3), "188 registers, 48 KiB; on sm_90 128 and 64"),
    *_rows((80, 89), 256, 2, Tile(64, 64, 4, 2), "64 KiB"),
    *_rows((90,), 256, 2, Tile(64, 64, 4, 2), "two blocks: 96 KiB"),
    *_rows((80, 90), 512, 2, Tile(64, 32, 4, 2), "96 KiB, on sm_90 128"),
    *_rows((89,), 512, 2, Tile(64, 32, 8, 2), "96 KiB of 99; 4 warps spill"),
    *_rows((80, 89, 90), 512, 4, Tile(32, 16, 4, 2, 168), "96 KiB of sm_89's 99; 3 blocks at 256"),
)
# few_rows_kernel, and gradient_kernel where all tiles are left to it: 1,024 rows are 64 programs.
FEW = (
    *_rows((80, 89, 90), 256, 2, Tile(16, 64, 4, 2), "the least rows that a product has"),
    *_rows((80, 89, 90), 512, 2, Tile(16, 32, 4, 2), "65 KiB"),
    *_rows((80, 89), 256, 4, Tile(16, 32, 4, 2, 255), "169 registers; 50 KiB, TF32 80"),
    *_rows((90,), 256, 4, Tile(16, 16, 4, 2, 255), "32 columns spill 70 at depth 128"),
    *_rows((80, 90), 512, 4, Tile(16, 32, 4, 2, 255), "96 KiB, in gradient_kernel 130"),
    *_rows((89,), 512, 4, Tile(16, 16, 4, 2, 255), "81 KiB of 99"),
)
# pull_apart_kernel: each thread keeps rows · columns / threads of the gradient in registers.
PULL = (
    *_rows((90,), 64, 2, Tile(128, 64, 8, 3), "two blocks: 117 registers, 41 KiB"),
    *_rows((90,), 128, 2, Tile(128, 64, 8, 2), "149 registers; 128 rows share a column's loads"),
    *_rows((90,), 256, 2, Tile(64, 64, 4, 2), "two blocks: 206 registers of 128 threads, 97 KiB"),
    *_rows((90,), 512, 2, Tile(64, 32, 4, 2), "half of the gradient; 64 columns spill"),
    *_rows(_SMALLER, 64, 2, Tile(128, 64, 8, 3), "170 registers"),
    *_rows(_SMALLER, 128, 2, Tile(64, 64, 4, 2), "two blocks on both: 222 registers, 40 KiB"),
    *_rows(_SMALLER, 256, 2, Tile(64, 64, 8, 2), "170 registers; 4 warps need all 255"),
    *_rows(_SMALLER, 512, 2, Tile(32, 32, 4, 2), "82 KiB of sm_89's 99; 168 registers"),
    *_rows((80, 89, 90), 256, 4, Tile(32, 16, 4, 2, 255), "214 registers; 50 KiB, TF32 64"),
    *_rows((80, 90), 512, 4, Tile(32, 16, 4, 2, 255), "224 registers, 114 KiB"),
    *_rows((89,), 512, 4, Tile(16, 16, 4, 2, 255), "81 KiB of 99"),
)
# gradient_kernel after pull_apart_kernel: its masks take 40 registers more.
GRADIENT = (
    *_rows((90,), 64, 2, Tile(64, 64, 4, 3), "127 registers"),
    *_rows((90,), 128, 2, Tile(64, 64, 4, 2), "159 registers, 49 KiB"),
    *_rows(_SMALLER, 64, 2, Tile(64, 64, 4, 3), "157 registers"),
    *_rows(_SMALLER, 128, 2, Tile(64, 32, 4, 2), "206 registers; 64 columns take 237"),
    *_rows((80, 89, 90), 256, 2, Tile(64, 64, 8, 2), "206 registers; 4 warps spill"),
    *_rows((80, 89, 90), 512, 2, Tile(32, 32, 4, 2), "82 KiB, 211 registers on sm_90"),
    *_rows((80, 89, 90), 256, 4, Tile(32, 16, 4, 2, 255), "206 registers; 50 KiB, TF32 64"),
    *_rows((80, 90), 512, 4, Tile(32, 16, 4, 2, 255), "244 registers, 114 KiB"),
    *_rows((89,), 512, 4, Tile(16, 16, 4, 2, 255), "81 KiB of 99"),
)
