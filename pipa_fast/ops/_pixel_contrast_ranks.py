# SPDX-License-Identifier: Apache-2.0
"""Pixel contrast over the rows of all ranks, of which each computes its own: exact, on any backend.

A rank needs the others' rows, and of each of them its label, Z and u (`reference/pixel_contrast.py`
has the equations): its own rows' losses are sums over their pairs, and so is the gradient, in which
a row stands as an anchor and as what remote anchors are compared with. Nothing is reduced but the
loss. A backend brings the sums over pairs of its rows with some keys; this module tells it with
which.

Labels, weights, Z and u of all ranks, 24 bytes a row, are gathered. So are the features while they
take up to PIPA_FAST_GATHER_BYTES on each rank (256 MiB where it is not set; alike on all ranks).
Beyond it, they go from rank to rank, two ranks' rows in memory at a time, while the ones before are
computed with: twice in the forward pass, since the positives' losses want the whole Z.
"""

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipa_fast.checks import require
from pipa_fast.ops._ranks import (
    counts_of_ranks,
    exchange_rows,
    gather_padded,
    place,
    sum_over_ranks,
)
from pipa_fast.ops.backends import Backend
from pipa_fast.reference.pixel_contrast import Rows, Settings, anchor_weights

GATHER_BYTES = 2**28


class Pairs(NamedTuple):
    """A backend's sums over pairs of rows [N] with keys: rows of other ranks.

    Where keys are None, the rows are their own keys, and a row is no pair with itself.
    """

    # -> z [N], in the form that `join` adds up
    denominators: Callable[[Rows, Rows | None, Settings], Tensor]
    join: Callable[[Tensor, Tensor], Tensor]
    # -> positives' losses [N] and their derivatives by log Z [N]; reads rows.z
    positives: Callable[[Rows, Rows | None, Settings], tuple[Tensor, Tensor]]
    # (w, derivatives, z) -> u [N], in the form that `pulls` reads
    factor: Callable[[Tensor, Tensor, Tensor], Tensor]
    # -> G X [N, D] in the dtype of the accumulation; reads z, u and w of both
    pulls: Callable[[Rows, Rows | None, Settings], Tensor]
    empty: float  # z of a row without keys


def gather_bytes() -> int:
    """Return how many bytes all ranks' features may take to be gathered at once."""
    text = os.environ.get("PIPA_FAST_GATHER_BYTES") or str(GATHER_BYTES)
    require(text.isdecimal(), "PIPA_FAST_GATHER_BYTES", text, "a number of bytes")
    return int(text)


def factor_of_z(w: Tensor, slopes: Tensor, z: Tensor) -> Tensor:
    """Return u where z is Z itself."""
    return w * slopes / z


class Team:
    """This rank's rows, and what it knows of all the others'."""

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        weights: Tensor | None,
        settings: Settings,
        group: str,
        saved: Tensor | None = None,  # [N, 2] z and u
    ) -> None:
        self.group, (self.rank, self.size) = group, place(group)
        self.features = features.contiguous()
        self.counts = counts = counts_of_ranks(group, features)
        # All [W, longest, ...]: what fills up a rank's rows is ignored.
        self.labels = gather_padded(group, labels, counts, settings.ignore_index)
        gathered = None if weights is None else gather_padded(group, weights, counts).flatten()
        dtype = torch.promote_types(features.dtype, torch.float32)
        labels = self.labels.flatten()
        share, positives = anchor_weights(labels, gathered, settings.ignore_index, dtype)
        self.w = (share / positives.clamp(min=1)).view(self.labels.shape)
        self.saved = None if saved is None else gather_padded(group, saved, counts)
        self.gathered: Tensor | None = None

    @property
    def own(self) -> Rows:
        """This rank's rows."""
        return self._rows(self.features, slice(self.rank, self.rank + 1))

    def others(self) -> Iterator[Rows]:
        """Yield the rows of the other ranks, of several at once or of one at a time."""
        if self._fits():
            yield from self._gather()
        else:
            for peer, features in exchange_rows(self.group, self.features, self.counts):
                yield self._rows(features, slice(peer, peer + 1))

    def _fits(self) -> bool:
        row = self.features.shape[1] * self.features.element_size()
        return self.size * max(self.counts) * row <= gather_bytes()

    def _gather(self) -> Iterator[Rows]:
        if self.gathered is None:
            self.gathered = gather_padded(self.group, self.features, self.counts)
        for ranks in (slice(0, self.rank), slice(self.rank + 1, self.size)):
            features = self.gathered[ranks].flatten(0, 1)
            if len(features):
                yield self._rows(features, ranks)

    def _rows(self, features: Tensor, ranks: slice) -> Rows:
        """Return rows of some ranks, of each as many as `features` has."""
        each = features.shape[0] // (ranks.stop - ranks.start)
        labels, w = (t[ranks, :each].flatten() for t in (self.labels, self.w))
        if self.saved is None:
            return Rows(features, labels, w)
        z, u = self.saved[ranks, :each].flatten(0, 1).T.contiguous()
        return Rows(features, labels, w, z, u)


def forward(
    pairs: Pairs,
    features: Tensor,  # [N, D] of this rank
    labels: Tensor,  # [N] int64
    weights: Tensor | None,  # [N]
    settings: Settings,
    group: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the group's loss [], and z and u [N] of this rank's rows."""
    team = Team(features, labels, weights, settings, group)
    rows = team.own
    z = pairs.denominators(rows, None, settings)
    for keys in team.others():
        z = pairs.join(z, pairs.denominators(rows, keys, settings))
    rows = rows._replace(z=z)
    losses, slopes = pairs.positives(rows, None, settings)
    for keys in team.others():
        more_losses, more_slopes = pairs.positives(rows, keys, settings)
        losses, slopes = losses + more_losses, slopes + more_slopes
    some = z != pairs.empty
    u = torch.where(some, pairs.factor(rows.w, slopes, z), 0)
    loss = (rows.w.double() * torch.where(some, losses, 0)).sum()
    return sum_over_ranks(loss, group).to(z.dtype), z, u


def backward(
    pairs: Pairs,
    grad: Tensor,  # []
    features: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    z: Tensor,
    u: Tensor,
    settings: Settings,
    group: str,
) -> Tensor:
    """Return dL/dfeatures [N, D], times the number of ranks, so that DDP's mean is exact."""
    team = Team(features, labels, weights, settings, group, torch.stack((z, u), 1))
    rows = team.own
    gradient = pairs.pulls(rows, None, settings)
    for keys in team.others():
        gradient += pairs.pulls(rows, keys, settings)
    scale = grad.to(gradient.dtype) * (team.size / settings.temperature)
    return (gradient * scale).to(features.dtype)


def over_ranks(backend: Backend, pairs: Pairs) -> Backend:
    """Return a backend of pixel contrast that takes groups too."""

    # A call's arguments are those of the op's schema, of which a group is the last.
    def over_group(whole: Callable[..., Any], single: Callable[..., Any], *arguments: Any) -> Any:
        *tensors, temperature, denominator, ignore_index, group = arguments
        settings = Settings(temperature, denominator, ignore_index)
        if group:
            return whole(pairs, *tensors, settings, group)
        return single(*tensors, *settings)

    return backend._replace(
        forward=functools.partial(over_group, forward, backend.forward),
        backward=functools.partial(over_group, backward, backend.backward),
    )
