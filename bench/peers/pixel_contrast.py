# SPDX-License-Identifier: Apache-2.0
"""Peers of `ops.pixel_contrast`."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bench.peers import Peer, compiled, needs, similarity
from bench.problem import Settings

CHUNK = 1024  # rows of the chunked peer


def eager(
    features: Tensor,  # [N, D]
    labels: Tensor,  # [N]
    *,
    temperature: float,
    denominator: str,
) -> Tensor:
    """The dense formula: the rows' maxima subtracted, masks as floats, a matrix for each step."""
    scores = similarity(features, features, temperature)
    scores = scores - scores.max(1, keepdim=True).values.detach()
    same = (labels[:, None] == labels[None, :]).to(scores.dtype)
    others = 1 - torch.eye(len(labels), dtype=scores.dtype, device=scores.device)
    exponential = scores.exp()
    if denominator == "negatives":
        total = exponential + (exponential * (1 - same)).sum(1, keepdim=True)
    else:
        total = (exponential * others).sum(1, keepdim=True)
    positive = same * others
    log_probability = (scores - total.log()) * positive
    return -(log_probability.sum(1) / positive.sum(1)).mean()


def chunked(features: Tensor, labels: Tensor, *, temperature: float, denominator: str) -> Tensor:
    """The formula over a thousand rows at a time, each part recomputed in the backward pass."""

    def part(rows: Tensor, start: int) -> Tensor:
        scores = similarity(rows, features, temperature)
        same = labels[start : start + len(rows), None] == labels
        others = torch.ones_like(same)
        own = torch.arange(len(rows), device=rows.device)
        others[own, start + own] = False
        counted = ~same if denominator == "negatives" else others
        total = scores.masked_fill(~counted, -torch.inf).logsumexp(1, keepdim=True)
        term = F.softplus(total - scores) if denominator == "negatives" else total - scores
        positive = same & others
        return (term.masked_fill(~positive, 0).sum(1) / positive.sum(1)).sum()

    losses = [
        checkpoint(part, rows, CHUNK * k, use_reentrant=False)
        for k, rows in enumerate(features.split(CHUNK))
    ]
    return torch.stack(losses).sum() / len(labels)


def metric_learning() -> Callable[..., Any]:
    """SupConLoss without its normalisation (the rows are unit rows) and with a plain mean."""
    from pytorch_metric_learning.distances import DotProductSimilarity
    from pytorch_metric_learning.losses import SupConLoss
    from pytorch_metric_learning.reducers import MeanReducer

    distance = DotProductSimilarity(normalize_embeddings=False)

    def loss(features: Tensor, labels: Tensor, *, temperature: float, denominator: str) -> Tensor:
        ask = SupConLoss(temperature=temperature, distance=distance, reducer=MeanReducer())
        return ask(features, labels)

    return loss


def flex_attention(compile: bool = True) -> Callable[..., Any]:
    """log Z by FlexAttention's log-sum-exp under a class mask; each class's own pairs densely."""
    from torch.nn.attention.flex_attention import AuxRequest, create_block_mask
    from torch.nn.attention.flex_attention import flex_attention as plain

    attend = torch.compile(plain, dynamic=False) if compile else plain

    def loss(features: Tensor, labels: Tensor, *, temperature: float, denominator: str) -> Tensor:
        y, order = labels.sort()  # so that whole blocks lie in one class
        x, n = features[order], len(labels)

        def counted(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return y[i] != y[j] if denominator == "negatives" else i != j

        mask = create_block_mask(counted, None, None, n, n, device=x.device, _compile=compile)
        rows, want = x[None, None], AuxRequest(lse=True)
        found: Any = attend(rows, rows, rows, None, mask, 1 / temperature, return_aux=want)
        log_total = found[1].lse[0, 0].to(torch.float32)
        counts, total = y.bincount().tolist(), x.new_zeros((), dtype=torch.float32)
        parts = zip(x.split(counts), log_total.split(counts), strict=True)
        for own, log_z in parts:
            scores, lead = similarity(own, own, temperature), log_z[:, None]
            term = F.softplus(lead - scores) if denominator == "negatives" else lead - scores
            pairs = term.sum() - term.diagonal().sum()
            total = total + pairs / max(1, len(own) - 1)
        return total / n

    return loss


def keops() -> Callable[..., Any]:
    """Both sums as KeOps reductions, which never store the matrix."""
    from pykeops.torch import LazyTensor  # pyright: ignore[reportMissingImports]

    def loss(features: Tensor, labels: Tensor, *, temperature: float, denominator: str) -> Tensor:
        x, y = features.float(), labels.float()[:, None]
        n, place = len(y), torch.arange(len(y), device=y.device).float()[:, None]

        def pairs(rows: Tensor) -> Any:
            return LazyTensor(rows[:, None, :].contiguous()), LazyTensor(rows[None].contiguous())

        (x_i, x_j), (y_i, y_j), (k_i, k_j) = pairs(x), pairs(y), pairs(place)
        scores = (x_i | x_j) / temperature
        unlike = ((y_i - y_j).square() - 0.5).step()  # 1 for rows of other classes
        apart = ((k_i - k_j).square() - 0.5).step()  # 1 for other rows
        counted = unlike if denominator == "negatives" else apart
        log_total = (scores - 1e4 * (1 - counted)).logsumexp(dim=1)
        positive = apart * (1 - unlike)
        margin = LazyTensor(log_total[:, None, :].contiguous()) - scores
        term = (1 + margin.exp()).log() if denominator == "negatives" else margin
        count = labels.bincount()[labels] - 1
        return ((positive * term).sum(dim=1)[:, 0] / count).sum() / n

    return loss


def _gpu_only(settings: Settings) -> str:
    return "" if settings.device.startswith("cuda") else "FlexAttention's backward needs a GPU"


def _all_only(settings: Settings) -> str:
    if settings.variant != "all":
        return "SupConLoss has the positives in the denominator: --variants all"
    if settings.n > 46340:
        return "more than 46340 rows overflow its pair indices"
    return needs("pytorch_metric_learning")


FORMULA = "PiPa (arXiv 2211.07609), equation 2; ContrastiveSeg (arXiv 2101.11939), equation 3"
PEERS = {
    "eager": Peer("eager formula", FORMULA, lambda: eager, 38),
    "compile": Peer("torch.compile of it", FORMULA, compiled(eager), 14, compiled=True),
    "chunked": Peer("chunked, checkpointed", FORMULA, lambda: chunked, 0),
    "metric_learning": Peer(
        "pytorch-metric-learning",
        "pytorch-metric-learning's SupConLoss (arXiv 2004.11362)",
        metric_learning,
        52,
        _all_only,
    ),
    "flex_attention": Peer(
        "FlexAttention, class mask",
        "torch.nn.attention.flex_attention (arXiv 2412.05496)",
        flex_attention,
        3,
        _gpu_only,
        compiled=True,
    ),
    "keops": Peer(
        "KeOps",
        "pykeops' LazyTensor (arXiv 2004.11127)",
        keops,
        0,
        lambda settings: needs("pykeops"),
        compiled=True,
    ),
}
