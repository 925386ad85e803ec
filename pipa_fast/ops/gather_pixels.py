# SPDX-License-Identifier: Apache-2.0
"""Take pixels of a feature map as rows of unit norm."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipa_fast.ops._checks import check_float, check_rank, integers
from pipa_fast.trace import traced


@traced("op:gather_pixels")
def gather_pixels(features: Tensor, index: Tensor, *, normalize: bool = True) -> Tensor:
    """Take the pixels at `index`, each divided by its L2 norm.

    Args:
        features: [B, D, H, W] float; need not be contiguous.
        index: [N] integers into the flattened B·H·W; a negative one stands for no pixel. Of maps
            that have none, it is not looked at.
        normalize: False where the features are unit vectors already.

    Returns:
        Rows [N, D] of the features' dtype; zeros where there is none. Norms are computed in
        float32 at least.

    Raises:
        ValueError: a shape, dtype or device that does not fit; on a CPU, an index past the end,
            which elsewhere fails an assertion that nobody waits for.
    """
    check_float("features", features)
    check_rank("features", features, "B D H W")
    check_rank("index", index, "N")
    index = integers("index", index, features, (index.shape[0],))
    _, dim, height, width = features.shape
    if features.numel() == 0:
        return features.new_zeros(index.shape[0], dim) + features.sum()  # zeros, in the graph
    taken = index.clamp(min=0)
    row, x = taken // width, taken % width
    try:
        rows = features[row // height, :, row % height, x]  # [N, D]: the map itself is not copied
    except IndexError as error:  # a CPU's; a GPU has an assertion of its own
        pixels = features[:, 0].numel()
        message = f"index must be below {pixels}, the pixels there are; got {int(index.max())}"
        raise ValueError(message) from error
    rows = torch.where((index >= 0)[:, None], rows, 0)  # first: a norm's slope at nan is nan
    return unit_rows(rows) if normalize else rows


def unit_rows(rows: Tensor) -> Tensor:
    """Return rows [N, D] divided by their norms, which are computed in float32 at least."""
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return F.normalize(wide, dim=1).to(rows.dtype)
