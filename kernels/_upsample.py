# SPDX-License-Identifier: Apache-2.0
"""Bilinear upsampling inside Triton kernels, align_corners=False: where pixels lie, what they get.

Along one axis, pixel p of `full` has its centre at (2p + 1)·low/(2·full) - 1/2 cells of a map of
`low`; centres beyond the first and the last cell stand at these. Places are found in integers,
2·full to a cell, so that all kernels find the same and only the share is rounded. Cells, pixels
and 2·low·full are taken to fit 31 bits: axes of up to 32,767 pixels.
"""

import triton
import triton.language as tl


@triton.jit
def place(pixel, low, full):
    """Return the cell at or before a pixel's centre, the one behind it, and the latter's share."""
    at = tl.maximum((2 * pixel + 1) * low - full, 0)
    cell = tl.minimum(at // (2 * full), low - 1)
    share = (at - cell * (2 * full)).to(tl.float32) / (2 * full)
    return cell, tl.minimum(cell + 1, low - 1), tl.where(cell < low - 1, share, 0.0)


@triton.jit
def first_pixel(cell, low, full):
    """Return the first pixel whose centre is at or behind a cell of 0 … low; `full` for `low`."""
    centre = tl.maximum(2 * full * cell + full - low, 0)
    first = (centre + 2 * low - 1) // (2 * low)
    return tl.where(cell <= 0, 0, tl.where(cell >= low, full, first))


@triton.jit
def logits_between(Cells, above, below, left, right, lower, behind, mask):
    """Return the logits, as float32, that lie two shares of a cell from one towards the next."""
    before = tl.load(Cells + above + left, mask=mask, other=0.0).to(tl.float32)
    under = tl.load(Cells + below + left, mask=mask, other=0.0).to(tl.float32)
    after = tl.load(Cells + above + right, mask=mask, other=0.0).to(tl.float32)
    last = tl.load(Cells + below + right, mask=mask, other=0.0).to(tl.float32)
    before += (under - before) * lower
    after += (last - after) * lower
    return before + (after - before) * behind
