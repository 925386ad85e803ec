# SPDX-License-Identifier: Apache-2.0
"""Pixel contrast by csrc/cuda: what happens to N numbers at a time around the kernels.

The kernels compute what depends on pairs of rows. Nothing here waits for the device.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipa_fast.ops._cuda import KERNELS, LOG2E, by_class, number
from pipa_fast.reference import _float16
from pipa_fast.reference._rows import DEAD, class_keys
from pipa_fast.reference.pixel_contrast import Rows, Settings

PADDING = 128  # kPadding of csrc/cuda/limits.h


class Side(NamedTuple):
    """Rows or keys by class, those that take no part last."""

    x: Tensor  # [N, D padded to a multiple of 8]
    order: Tensor  # [N] int64, the row that each was
    classes: Tensor  # [N] int64 ascending, DEAD where a row takes no part
    live: Tensor  # [1] int32, rows that take part

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, ignore_index: int) -> "Side":
        """Sort rows."""
        classes, order, live = by_class(class_keys(labels, ignore_index))
        # Infinite cosines may lose nothing, which would hide them; nan is in every sum.
        x = features[order].nan_to_num(nan=math.nan, posinf=math.nan, neginf=math.nan)
        return cls(F.pad(x, (0, -features.shape[1] % 8)), order, classes, live)

    def home(self, values: Tensor) -> Tensor:
        """Return values [K, padded] where the rows came from [K, N]: 0 for those without part."""
        n = len(self.order)
        out = values.new_empty((len(values), n))
        out[:, self.order] = torch.where(self.classes != DEAD, values[:, :n], 0)
        return out


class Meeting(NamedTuple):
    """Rows and the keys that they meet."""

    rows: Side
    keys: Side | None  # None: the rows are their own keys
    first: Tensor  # [padded] int32, where the keys of a row's class begin
    past: Tensor  # and end; 0 where the row takes no part

    @classmethod
    def of(cls, rows: Side, keys: Side | None) -> "Meeting":
        """Find the classes of rows among the keys."""
        others = (rows if keys is None else keys).classes
        first, past = (
            torch.searchsorted(others, rows.classes, right=right, out_int32=True)
            for right in (False, True)
        )
        past = torch.where(rows.classes == DEAD, 0, past)
        return cls(rows, keys, *_padded(torch.stack((first, past))).unbind())

    def positives(self) -> Tensor:
        """Return how many positives each row has among the keys [padded] float32."""
        itself = 1 if self.keys is None else 0
        return (self.past - self.first - itself).clamp(min=0).float()

    def problem(self, temperature: float, denominator: str) -> tuple[object, ...]:
        """Return the first arguments of a kernel's operator."""
        rows = self.rows
        others = (None, None) if self.keys is None else (self.keys.x, self.keys.live)
        how = denominator == "all", LOG2E / temperature, number(rows.x.dtype)
        return rows.x, self.first, self.past, rows.live, *others, *how


class Anchors(NamedTuple):
    """Rows that meet each other, and the weights [padded] of those that are anchors."""

    meeting: Meeting
    positives: Tensor  # float32
    share: Tensor  # float32, an anchor's weight
    pair: Tensor  # float32, and that for each of its positives

    @classmethod
    def of(
        cls, features: Tensor, labels: Tensor, weights: Tensor | None, ignore_index: int
    ) -> "Anchors":
        """Sort all rows and their weights."""
        meeting = Meeting.of(Side.of(features, labels, ignore_index), None)
        positives = meeting.positives()
        share = (positives > 0).float()
        if weights is not None:
            # Those of rows that are no anchors may be anything.
            share = torch.where(positives > 0, _padded(weights[meeting.rows.order]), 0)
        return cls(meeting, positives, share, share / positives.clamp(min=1))


def _padded(values: Tensor) -> Tensor:
    """Fill [..., N] up with zeros to whole blocks of rows."""
    return F.pad(values, (0, -values.shape[-1] % PADDING))


def forward(
    features: Tensor,  # [N, D]
    labels: Tensor,  # [N] int64
    weights: Tensor | None,  # [N] float32
    temperature: float,
    denominator: str,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss [], Z [N], and u [N] times the sum of the anchors' weights."""
    if features.shape[0] == 0:
        nothing = features.new_zeros(0, dtype=torch.float32)
        return nothing.sum(), nothing, nothing.clone()
    rows = Anchors.of(features, labels, weights, ignore_index)
    problem = rows.meeting.problem(temperature, denominator)
    z = KERNELS.pixel_contrast_denominators(*problem).sum(0)
    anchors = rows.share > 0
    if denominator == "all":
        # log Z - mean (s - 1) / τ; an anchor has a positive, so that its Z is above 0
        cosines = KERNELS.pixel_contrast_cosines(*problem)
        mean = (cosines / rows.positives.clamp(min=1) - 1) / temperature
        terms = rows.share * (torch.where(anchors, z, 1).log() - mean)
        u = rows.share / torch.where(anchors, z, 1)
    else:
        losses, slopes = KERNELS.pixel_contrast_positives(*problem, z).sum(0)
        terms, u = rows.pair * losses / LOG2E, rows.pair * slopes
    loss = torch.where(anchors, terms, 0).sum() / rows.share.sum().clamp(min=1e-38)
    z, u = rows.meeting.rows.home(torch.stack((z, u)))
    return loss, z, u.clone()  # outputs of an op may not share memory


def backward(
    grad: Tensor,  # []
    features: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    z: Tensor,
    u: Tensor,
    temperature: float,
    denominator: str,
    ignore_index: int,
) -> Tensor:
    """Return dL/dfeatures [N, D]."""
    n, d = features.shape
    if n == 0:
        return features.new_empty((n, d))
    rows = Anchors.of(features, labels, weights, ignore_index)
    order, total = rows.meeting.rows.order, rows.share.sum()
    z, u = _padded(torch.stack((z, u))[:, order]).unbind()
    scale = total.new_ones(())
    if features.dtype == torch.float16:
        u = u + (u - u)  # inf as NaN: the kernel takes large entries of G for padding's
        largest = rows.share.amax()
        scale = torch.where(largest > 0, _float16.largest_share(temperature) / largest, 0.0)
    factor = torch.where(total > 0, grad.float() / (temperature * total * scale), 0.0)
    slopes = torch.stack((z, u * scale, rows.pair * scale))
    gradient = KERNELS.pixel_contrast_gradient(
        *rows.meeting.problem(temperature, denominator), slopes, None, order, factor, False
    )
    return gradient[:, :d].contiguous()


# ---- across ranks: sums over pairs with some keys, see Pairs of _pixel_contrast_ranks.py ----


def _meeting(rows: Rows, keys: Rows | None, settings: Settings) -> Meeting | None:
    """Return rows and keys by class, None where there is no pair: nothing is launched for none."""
    if len(rows.labels) == 0 or (keys is not None and len(keys.labels) == 0):
        return None
    side = Side.of(rows.x, rows.labels, settings.ignore_index)
    others = None if keys is None else Side.of(keys.x, keys.labels, settings.ignore_index)
    return Meeting.of(side, others)


def denominators(rows: Rows, keys: Rows | None, settings: Settings) -> Tensor:
    """Return Z [N] over the keys."""
    meeting = _meeting(rows, keys, settings)
    if meeting is None:
        return rows.x.new_zeros(len(rows.labels), dtype=torch.float32)
    problem = meeting.problem(settings.temperature, settings.denominator)
    z = KERNELS.pixel_contrast_denominators(*problem).sum(0, keepdim=True)
    return meeting.rows.home(z)[0]


def positives(rows: Rows, keys: Rows | None, settings: Settings) -> tuple[Tensor, Tensor]:
    """Return the sums of positives' losses, and of their derivatives by log Z [N]."""
    meeting = _meeting(rows, keys, settings)
    if meeting is None:
        losses, slopes = rows.x.new_zeros((2, len(rows.labels)), dtype=torch.float32)
        return losses, slopes
    assert rows.z is not None
    z = _padded(rows.z[meeting.rows.order])
    problem = meeting.problem(settings.temperature, settings.denominator)
    if settings.denominator == "all":
        slopes = meeting.positives()
        log_z = torch.where(z > 0, z, 1).log()
        cosines = KERNELS.pixel_contrast_cosines(*problem)
        losses = slopes * log_z - (cosines - slopes) / settings.temperature
    else:
        losses, slopes = KERNELS.pixel_contrast_positives(*problem, z).sum(0)
        losses, slopes = losses / LOG2E, slopes * z
    losses, slopes = meeting.rows.home(torch.stack((losses, slopes)))
    return losses, slopes


def pulls(rows: Rows, keys: Rows | None, settings: Settings) -> Tensor:
    """Return G X [N, D] over the keys, in float32."""
    meeting, d = _meeting(rows, keys, settings), rows.x.shape[1]
    if meeting is None:
        return rows.x.new_zeros((len(rows.labels), d), dtype=torch.float32)
    gain = _float16.gain(rows, rows if keys is None else keys, settings.temperature)
    of_rows = _slopes(rows, meeting.rows, gain)
    of_keys = None
    if keys is not None and meeting.keys is not None:
        of_keys = _slopes(keys, meeting.keys, gain)
    problem = meeting.problem(settings.temperature, settings.denominator)
    gradient = KERNELS.pixel_contrast_gradient(
        *problem, of_rows, of_keys, meeting.rows.order, 1 / gain, True
    )
    return gradient[:, :d].contiguous()


def _slopes(known: Rows, side: Side, gain: Tensor) -> Tensor:
    """Return z, u and w of sorted rows [3, padded], the latter two times the gain."""
    assert known.z is not None and known.u is not None
    slopes = torch.stack((known.z, known.u * gain, known.w * gain))[:, side.order]
    return _padded(torch.where(side.classes != DEAD, slopes, 0)).contiguous()
