# SPDX-License-Identifier: Apache-2.0
"""Peers of `ops.overlap_pairs`."""

import torch
from torch import Tensor

from bench.peers import Peer

BY_IMAGE = "the lineage's way: both maps of each image cropped by integers of the host, randperm"


def loop(
    boxes: Tensor,
    flips: Tensor,
    *,
    crop_size: tuple[int, int],
    stride: int,
    num_pairs: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Cut the overlap out of both maps of cell numbers, image by image, and draw from all."""
    torch.manual_seed(seed)
    height, width = crop_size[0] // stride, crop_size[1] // stride
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    corners, mirrored = boxes.cpu(), flips.cpu()  # the lineage has them on the host: no wait
    for image, (both, flipped) in enumerate(zip(corners.tolist(), mirrored.tolist(), strict=True)):
        cells = torch.arange(height * width, device=boxes.device).view(height, width)
        top, left = (max(box[axis] for box in both) for axis in (0, 1))
        bottom, right = (min(box[axis] for box in both) for axis in (2, 3))
        bottom, right = max(top, bottom), max(left, right)  # no overlap: nothing is cut out
        for view, (y0, x0, _, _) in enumerate(both):
            numbers = cells.flip(1) if flipped[view] else cells
            rows = slice((top - y0) // stride, (bottom - y0) // stride)
            columns = slice((left - x0) // stride, (right - x0) // stride)
            found[view].append(numbers[rows, columns].flatten() + image * height * width)
    all_a, all_b = torch.cat(found[0]), torch.cat(found[1])
    drawn = torch.randperm(len(all_a))[:num_pairs].to(boxes.device)
    return all_a[drawn], all_b[drawn]


PEERS = {"lineage": Peer("loop over images", BY_IMAGE, lambda: loop, 40)}
