# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy of upsampled logits in Triton: neither they nor their slopes are ever stored.

    L = Σ_p w_p (log Σ_k exp x_pk - x_p,y_p) / n,   ∂L/∂x_pk = w_p (softmax(x_p)_k - [k = y_p]) / n

with x_p the logits upsampled to pixel p. _sum_pixels meets every pixel's classes a few at a time
and leaves log Σ exp, four bytes a pixel. _gather_slopes then owns cells of the small map: it
recomputes the logits of the pixels around each from the nine cells that they lie between, and adds
their slopes by its share of them, in a fixed order and without atomics. An exponential is computed
four times, once for each cell around its pixel, which is cheaper than to store it once.

Beyond inputs, slope and gradient, 4 bytes a pixel are allocated and some for each program: of 19
classes at 4 × 4 pixels a cell, eager stores the full-size logits, their log-softmax and two
gradients of 76 bytes a pixel each; this slope of 4.75 bytes, a gradient as large and 4 bytes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipa_fast.kernels import _launch
from pipa_fast.kernels._launch import Tile
from pipa_fast.kernels._upsample import first_pixel, logits_between, place

# Classes at a time × pixels, as kernels/pseudo_labels.py.
PIXELS = Tile(8, 128, 4, 1)
# Classes × cells: four corners and a sum of each are 20 registers of 128 threads; labels and
# log Σ exp are read again for every 4 classes, of which 19 fill 20.
CELLS = Tile(4, 128, 4, 1)


@triton.jit
def _sum_pixels(
    Logits,  # [B, K, h, w]
    Labels,  # [B, H, W] int64
    Weights,  # [B, H, W] fp32, or Labels where there are none
    LogSum,  # [B, H, W] fp32, written where GRADIENT
    Losses,  # [programs] fp32, each one's Σ w (log Σ exp - x_y)
    Counts,  # [programs] int32, and its pixels that are not ignored
    Right,  # [] bool, set to False where a label is neither a class nor ignored
    K,
    h,
    w,
    H,
    W,
    ignore_index,
    HAS_WEIGHTS: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    program, blocks = tl.program_id(0), tl.cdiv(W, BLOCK_X)
    row, image = program // blocks, (program // (blocks * H)).to(tl.int64)
    x = program % blocks * BLOCK_X + tl.arange(0, BLOCK_X)
    above, below, lower = place(row % H, h, H)
    left, right, behind = place(x[None, :], w, W)
    above, below = above * w, below * w
    at = row.to(tl.int64) * W + x
    label = tl.load(Labels + at, mask=x < W, other=ignore_index)
    top = tl.full((BLOCK_X,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_X,), tl.float32)
    own = tl.zeros((BLOCK_X,), tl.float32)
    for begin in range(0, K, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)
        Cells = Logits + image * K * h * w + (k * h)[:, None] * w
        real = (k < K)[:, None] & (x < W)[None, :]
        logits = logits_between(Cells, above, below, left, right, lower, behind, real)
        logits = tl.where((k < K)[:, None], logits, -float("inf"))
        own += tl.sum(tl.where(k[:, None] == label[None, :], logits, 0.0), 0)
        higher = tl.maximum(top, tl.max(logits, 0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(logits - higher[None, :]), 0)
        top = higher
    log_sum = top + tl.log(total)
    valid = (label != ignore_index) & (x < W)
    loss = log_sum - own
    if HAS_WEIGHTS:
        loss *= tl.load(Weights + at, mask=valid, other=0.0)
    tl.store(Losses + program, tl.sum(tl.where(valid, loss, 0.0), 0))
    tl.store(Counts + program, tl.sum(valid.to(tl.int32), 0))
    wrong = valid & ((label < 0) | (label >= K))
    tl.store(Right, False, mask=tl.sum(wrong.to(tl.int32), 0) > 0)
    if GRADIENT:
        tl.store(LogSum + at, log_sum, mask=x < W)


# fmt: off
@triton.jit
def _gather_slopes(
    Logits,  # [B, K, h, w]
    Labels,  # [B, H, W] int64
    Weights,  # [B, H, W] fp32, or Labels where there are none
    LogSum,  # [B, H, W] fp32
    Divisor,  # [] int64
    Slope,  # [B, K, h, w] fp32
    K, h, w, H, W, ignore_index,
    HAS_WEIGHTS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_X: tl.constexpr,
):
    # fmt: on
    program, blocks, parts = tl.program_id(0), tl.cdiv(w, BLOCK_X), tl.cdiv(K, BLOCK_K)
    x = program % blocks * BLOCK_X + tl.arange(0, BLOCK_X)
    y = program // blocks % h
    k = program // (blocks * h) % parts * BLOCK_K + tl.arange(0, BLOCK_K)
    image = (program // (blocks * h * parts)).to(tl.int64)
    Cells = Logits + image * K * h * w + (k * h)[:, None] * w
    real = (k < K)[:, None] & (x < w)[None, :]
    slope = tl.zeros((BLOCK_K, BLOCK_X), tl.float32)
    # The cell ends one band of pixels and begins the next, along either axis. Band -1 has none: its
    # first pixel and band 0's are both 0.
    for begins_y in tl.static_range(2):
        band_y = y - 1 + begins_y
        above, below = tl.maximum(band_y, 0) * w, tl.minimum(band_y + 1, h - 1) * w
        first_y, past_y = first_pixel(band_y, h, H), first_pixel(band_y + 1, h, H)
        for begins_x in tl.static_range(2):
            band_x = x - 1 + begins_x
            left, right = tl.maximum(band_x, 0)[None, :], tl.minimum(band_x + 1, w - 1)[None, :]
            first_x, past_x = first_pixel(band_x, w, W), first_pixel(band_x + 1, w, W)
            count = tl.where(x < w, past_x - first_x, 0)
            # Of a cell of 2·W: where the first pixel lies in the band, as `place` has it.
            start_x = (2 * first_x + 1) * w - W - 2 * W * band_x
            unit_x = tl.where(band_x < w - 1, 1.0 / (2 * W), 0.0)
            a = tl.load(Cells + above + left, mask=real, other=0.0).to(tl.float32)
            b = tl.load(Cells + below + left, mask=real, other=0.0).to(tl.float32)
            c = tl.load(Cells + above + right, mask=real, other=0.0).to(tl.float32)
            d = tl.load(Cells + below + right, mask=real, other=0.0).to(tl.float32)
            for pixel_y in range(first_y, past_y):
                lower = tl.maximum((2 * pixel_y + 1) * h - H - 2 * H * band_y, 0) / (2.0 * H)
                lower = tl.where(band_y < h - 1, lower, 0.0)
                share_y = 1.0 - lower if begins_y == 1 else lower
                before, rise = a + (b - a) * lower, c + (d - c) * lower
                rise -= before
                row = (image * H + pixel_y) * W + first_x
                for step in range(0, tl.max(count, 0)):
                    behind = tl.maximum(start_x + 2 * w * step, 0).to(tl.float32) * unit_x
                    label = tl.load(Labels + row + step, mask=step < count, other=ignore_index)
                    log_sum = tl.load(LogSum + row + step, mask=step < count, other=0.0)
                    share = (1.0 - behind if begins_x == 1 else behind) * share_y
                    if HAS_WEIGHTS:
                        share *= tl.load(Weights + row + step, mask=step < count, other=0.0)
                    odds = tl.exp(before + rise * behind[None, :] - log_sum[None, :])
                    odds = tl.where(k[:, None] == label[None, :], odds - 1.0, odds)
                    slope += tl.where((label != ignore_index)[None, :], share[None, :] * odds, 0.0)
    slope *= 1.0 / tl.load(Divisor).to(tl.float32)
    at = image * K * h * w + (k * h)[:, None] * w + (y * w + x)[None, :]
    tl.store(Slope + at, slope, mask=real)


def forward(
    logits: Tensor,  # [B, K, h, w]
    labels: Tensor,  # [B, H, W] int64
    weights: Tensor | None,  # [B, H, W] fp32
    ignore_index: int,
    all_pixels: bool,
    gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Return the loss [] and its slope dL/dlogits [B, K, h, w], or an empty one, in float32.

    A label that is neither a class nor `ignore_index` fails an assertion on the device, as in
    torch's own loss, which the next synchronisation tells of.
    """
    logits, labels = logits.contiguous(), labels.contiguous()
    weights = labels if weights is None else weights.contiguous()
    (images, classes, *small), full = logits.shape, labels.shape[1:]
    slope = logits.new_empty(logits.shape if gradient else 0, dtype=torch.float32)
    if labels.numel() == 0:
        return slope.new_zeros(()), slope.zero_()
    programs = images * full[0] * triton.cdiv(full[1], PIXELS.block_n)
    log_sum = slope.new_empty(labels.shape if gradient else 1)
    losses, counts = slope.new_empty(programs), labels.new_empty(programs, dtype=torch.int32)
    right = torch.ones((), dtype=torch.bool, device=logits.device)
    sizes = (classes, *small, *full, ignore_index)
    constants = {"HAS_WEIGHTS": weights is not labels}
    with _launch.on_device(logits):
        _launch.launch(
            _sum_pixels,
            (programs,),
            PIXELS,
            *(logits, labels, weights, log_sum, losses, counts, right, *sizes),
            **constants,
            GRADIENT=gradient,
            BLOCK_K=PIXELS.block_m,
            BLOCK_X=PIXELS.block_n,
        )
        torch._assert_async(right, f"labels must be classes 0 to {classes - 1} or ignore_index")
        if all_pixels:
            divisor = torch.full((), labels.numel(), device=logits.device)
        else:
            divisor = counts.sum().clamp(min=1)
        if gradient:
            blocks = triton.cdiv(classes, CELLS.block_m) * triton.cdiv(small[1], CELLS.block_n)
            _launch.launch(
                _gather_slopes,
                (images * small[0] * blocks,),
                CELLS,
                *(logits, labels, weights, log_sum, divisor, slope, *sizes),
                **constants,
                BLOCK_K=CELLS.block_m,
                BLOCK_X=CELLS.block_n,
            )
    return losses.sum() / divisor, slope
