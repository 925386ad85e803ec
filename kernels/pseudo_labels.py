# SPDX-License-Identifier: Apache-2.0
"""Pseudo labels in Triton: every pixel's logits are upsampled where its maximum is taken.

A program owns part of a row of pixels and meets the classes a few at a time, keeping the largest
logit and the sum of exponentials relative to it: its probability is one over that sum. What is
allocated is the result and four bytes for each BLOCK_X pixels; the full-size logits would take
4·K bytes a pixel, and eager's softmax as much again.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipa_fast.kernels import _launch
from pipa_fast.kernels._launch import Tile
from pipa_fast.kernels._upsample import logits_between, place

# Classes at a time × pixels. 19 classes fill 24 of three times 8, and 8 logits of 128 pixels with
# their four corners are 40 registers of each of 128 threads.
TILE = Tile(8, 128, 4, 1)


@triton.jit
def _label_pixels(
    Logits,  # [B, K, h, w]
    Labels,  # [B, H, W] int64
    Confidence,  # [B, H, W] fp32
    Confident,  # [programs] int32, each one's confident pixels
    K,
    h,
    w,
    H,
    W,
    threshold,
    BLOCK_K: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    program, blocks = tl.program_id(0), tl.cdiv(W, BLOCK_X)
    row, image = program // blocks, (program // (blocks * H)).to(tl.int64)
    x = program % blocks * BLOCK_X + tl.arange(0, BLOCK_X)
    above, below, lower = place(row % H, h, H)
    left, right, behind = place(x[None, :], w, W)
    above, below = above * w, below * w
    top = tl.full((BLOCK_X,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_X,), tl.float32)
    label = tl.zeros((BLOCK_X,), tl.int32)
    for begin in range(0, K, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)
        Cells = Logits + image * K * h * w + (k * h)[:, None] * w
        real = (k < K)[:, None] & (x < W)[None, :]
        logits = logits_between(Cells, above, below, left, right, lower, behind, real)
        logits = tl.where((k < K)[:, None], logits, -float("inf"))
        highest, index = tl.max(logits, 0, return_indices=True)
        label = tl.where(highest > top, begin + index, label)
        higher = tl.maximum(top, highest)
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(logits - higher[None, :]), 0)
        top = higher
    confidence = 1.0 / total
    at = row.to(tl.int64) * W + x
    tl.store(Labels + at, label.to(tl.int64), mask=x < W)
    tl.store(Confidence + at, confidence, mask=x < W)
    confident = (confidence >= threshold) & (x < W)
    tl.store(Confident + program, tl.sum(confident.to(tl.int32), 0))


def forward(
    logits: Tensor,  # [B, K, h, w]
    height: int,
    width: int,
    threshold: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return labels, confidence [B, H, W] and the confident share [], as `ops.pseudo_labels`."""
    logits = logits.contiguous()
    images, *sizes = logits.shape
    labels = logits.new_empty((images, height, width), dtype=torch.int64)
    confidence = logits.new_empty(labels.shape, dtype=torch.float32)
    if images == 0:
        return labels, confidence, confidence.sum()
    programs = images * height * triton.cdiv(width, TILE.block_n)
    confident = labels.new_empty(programs, dtype=torch.int32)
    with _launch.on_device(logits):
        _launch.launch(
            _label_pixels,
            (programs,),
            TILE,
            *(logits, labels, confidence, confident, *sizes, height, width, threshold),
            BLOCK_K=TILE.block_m,
            BLOCK_X=TILE.block_n,
        )
    return labels, confidence, confident.sum() / labels.numel()
