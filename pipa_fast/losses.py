# SPDX-License-Identifier: Apache-2.0
"""The two contrasts as modules, to drop into any trainer of a segmentation network."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipa_fast import ops
from pipa_fast.bank import FeatureBank
from pipa_fast.checks import require
from pipa_fast.ops._checks import (
    check_count,
    check_device,
    check_feature_map,
    check_float,
    check_integer,
    check_label,
    check_rank,
    check_shape,
    check_share,
    check_temperature,
    group_name,
    is_count,
    pixel_weights,
)
from pipa_fast.ops._ranks import gather_rows, join_rows, place, sum_over_ranks
from pipa_fast.ops.gather_pixels import unit_rows


def resize_nearest(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps [B, H, W] of any dtype to [B, *size] by the pixel nearest each cell's centre.

    That is row floor((i + ½)·H/h), F.interpolate's "nearest-exact", which knows no integer labels:
    the point where a cell of a bilinear map (align_corners=False) is centred. Of the four pixels
    around the centre of an even cell it is the lower right one.

    Raises ValueError for maps of another rank or a size that is not two lengths.
    """
    check_rank("maps", maps, "B H W")
    pair = isinstance(size, Sequence) and len(size) == 2 and all(is_count(n, 0) for n in size)
    require(pair, "size", size, "two lengths (h, w)")
    for axis, length in ((1, size[0]), (2, size[1])):
        full = maps.shape[axis]
        if full != length:
            cell = torch.arange(length, device=maps.device)
            maps = maps.index_select(axis, (2 * cell + 1) * full // (2 * length))
    return maps


def _check_map(name: str, maps: Tensor, like: Tensor, *, integer: bool) -> None:
    """A map [B, H, W] for the images of `like` [B, D, h, w]."""
    check_rank(name, maps, "B H W")
    if integer:
        check_integer(name, maps)
    else:
        check_float(name, maps)
    require(
        maps.shape[0] == like.shape[0] and (0 not in maps.shape[1:] or 0 in like.shape[2:]),
        name,
        tuple(maps.shape),
        f"[B, H, W] with B = {like.shape[0]}",
    )
    check_device(name, maps, like)


def _of_rank(index: Tensor, first: int, count: int) -> Tensor:
    """Return cells [N] of every rank's maps as cells of this rank's; -1 for those of others."""
    own = (index >= first) & (index < first + count)
    return torch.where(own, index - first, -1)


class PixelContrastLoss(nn.Module):
    """Contrast of pixel embeddings under their labels, over the images of a batch.

    Args:
        temperature: above 0.
        base_temperature: scales the loss by temperature / base_temperature, as the release does
            with 0.07; None does not.
        denominator: "negatives" or "all", see `ops.pixel_contrast`.
        num_anchors: how many pixels are drawn by `ops.sample_anchors`, none where the images hold
            more (image, class) pairs than that; or "all".
        normalize: False where embeddings are unit vectors already.
        max_per_class: most anchors of one class in one image.
        hard_fraction: share of anchors drawn from wrongly predicted pixels.
        ignore_index: label of pixels that take no part.
        backend: who computes, see `ops.backends`; None for the best.

    Source: PiPa (arXiv 2211.07609), section 3.2.
    """

    step: Tensor

    def __init__(
        self,
        temperature: float = 0.1,
        base_temperature: float | None = None,
        denominator: Literal["negatives", "all"] = "negatives",
        num_anchors: int | Literal["all"] = 1024,
        normalize: bool = True,
        *,
        max_per_class: int = 100,
        hard_fraction: float = 0.5,
        ignore_index: int = 255,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        self.scale = 1.0
        if base_temperature is not None:
            self.scale = self.temperature / check_temperature(base_temperature, "base_temperature")
        counted = is_count(num_anchors, 1)
        require(counted or num_anchors == "all", "num_anchors", num_anchors, 'above 0, or "all"')
        known = denominator in ("negatives", "all")
        require(known, "denominator", denominator, '"negatives" or "all"')
        check_share("hard_fraction", hard_fraction)
        check_count("max_per_class", max_per_class, least=1)
        check_label("ignore_index", ignore_index)
        self.denominator: Literal["negatives", "all"] = denominator
        self.num_anchors, self.normalize = num_anchors, normalize
        self.max_per_class, self.hard_fraction = max_per_class, hard_fraction
        self.ignore_index, self.backend = ignore_index, backend
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        predictions: Tensor | None = None,
        *,
        weights: Tensor | None = None,
        seed: int | Tensor | None = None,
        group: dist.ProcessGroup | str | None = None,
    ) -> Tensor:
        """Return the loss [] in nats, float32 (float64 for float64).

        Args:
            embeddings: [B, D, h, w] float.
            labels: [B, H, W] integers, resized to h, w (`resize_nearest`).
            predictions: [B, H', W'] integers, resized too: which pixels are hard. None draws
                without regard to it. Not read where all pixels are anchors.
            weights: [B, H', W'] of at least 0, resized too: what a pixel counts as an anchor.
            seed: of the draw, see `ops.sample_anchors`. None counts calls in the buffer `step`,
                so that a resumed run draws as one never interrupted.
            group: process group over whose ranks this is one loss, see `ops.pixel_contrast`. The
                anchors are those that one rank with all the images would draw, so that seeds and
                the maps' sizes must agree; every rank contrasts all of them.

        Raises:
            ValueError: a shape, dtype or device that does not fit.
        """
        check_feature_map("embeddings", embeddings)
        size = (embeddings.shape[2], embeddings.shape[3])
        _check_map("labels", labels, embeddings, integer=True)
        labels = resize_nearest(labels, size)
        if weights is not None:
            _check_map("weights", weights, embeddings, integer=False)
            weights = resize_nearest(weights, size).flatten()
        if self.num_anchors == "all":
            anchors = embeddings.permute(0, 2, 3, 1).reshape(-1, embeddings.shape[1])
            anchors = unit_rows(anchors) if self.normalize else anchors
            anchor_labels = labels.flatten()
        else:
            if predictions is not None:
                _check_map("predictions", predictions, embeddings, integer=True)
                predictions = resize_nearest(predictions, size)
            # So few that every rank contrasts them all: then none has to know how many are whose.
            ranks, group = group_name(group), None
            index, anchor_labels = self._draw(labels, predictions, seed, ranks)
            anchors = ops.gather_pixels(embeddings, index, normalize=self.normalize)
            anchors = join_rows(anchors, ranks)
            weights = None if weights is None else join_rows(_take(weights, index, 0), ranks)
        loss = ops.pixel_contrast(
            anchors,
            anchor_labels,
            weights=weights,
            temperature=self.temperature,
            denominator=self.denominator,
            ignore_index=self.ignore_index,
            group=group,
            backend=self.backend,
        )
        return loss * self.scale

    def _draw(
        self,
        labels: Tensor,
        predictions: Tensor | None,
        seed: int | Tensor | None,
        group: str,
    ) -> tuple[Tensor, Tensor]:
        """Return the cells of anchors, -1 where they are another rank's, and all their labels."""
        assert isinstance(self.num_anchors, int)
        if seed is None:
            seed = self.step.clone()
            self.step += 1
        (every_label, every_prediction), first = gather_rows(
            group, labels, labels if predictions is None else predictions
        )
        index, anchor_labels = ops.sample_anchors(
            every_label,
            every_prediction,
            seed=seed,
            num_anchors=self.num_anchors,
            max_per_class=self.max_per_class,
            # without predictions every pixel is easy, and easy ones fill up
            hard_fraction=self.hard_fraction,
            ignore_index=self.ignore_index,
        )
        if group:
            index = _of_rank(index, first * labels.shape[1] * labels.shape[2], labels.numel())
        return index, anchor_labels


class PatchConsistencyLoss(nn.Module):
    """Consistency of two overlapping crops: each is anchor once, with the other as positive.

    An anchor counts where the other view is more confident than the threshold and than the
    anchor's own view. It is compared under the other view's label, the more confident one: under
    its own, where the two disagree, its positive would be among its negatives. Negatives are the
    bank's keys of other classes. In training mode the keys of both views are stored before they
    are compared with, so that the present ones are among them; in evaluation mode the bank stays
    as it is. Without a bank the present keys are all there are.

    Args:
        temperature: above 0.
        confidence_threshold: probability above which a view is confident.
        bank: keys of earlier steps, or None.
        normalize: False where features are unit vectors already.
        num_pairs: most pairs of matching cells taken from a batch.
        bank_confidence: probability that a key needs to be a negative. An unsure key's label is
            often wrong, and then it pushes away an anchor of its own class.
        ignore_index: label of pixels that are neither anchors nor keys, as are negative labels.
        backend: who computes, see `ops.backends`; None for the best.

    Source: PiPa (arXiv 2211.07609), section 3.3; the directional mask is that of Lai et al. (CVPR
    2021, arXiv 2106.14133).
    """

    step: Tensor

    def __init__(
        self,
        temperature: float = 0.1,
        confidence_threshold: float = 0.9,
        bank: FeatureBank | None = None,
        normalize: bool = True,
        *,
        num_pairs: int = 1600,
        bank_confidence: float = 0.0,
        ignore_index: int = 255,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        check_share("confidence_threshold", confidence_threshold)
        check_share("bank_confidence", bank_confidence)
        require(
            bank is None or isinstance(bank, FeatureBank), "bank", bank, "a FeatureBank or None"
        )
        check_count("num_pairs", num_pairs, least=1)
        check_label("ignore_index", ignore_index)
        self.confidence_threshold, self.bank = confidence_threshold, bank
        self.bank_confidence = bank_confidence
        self.normalize, self.num_pairs = normalize, num_pairs
        self.ignore_index, self.backend = ignore_index, backend
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(
        self,
        view_a: Tensor,
        view_b: Tensor,
        labels_a: Tensor,
        labels_b: Tensor,
        confidence_a: Tensor,
        confidence_b: Tensor,
        boxes: Tensor,
        flips: Tensor,
        *,
        weights: Tensor | None = None,
        seed: int | Tensor | None = None,
        group: dist.ProcessGroup | str | None = None,
    ) -> Tensor:
        """Return the loss [] in nats, a mean over the anchors of both directions.

        Args:
            view_a, view_b: [B, D, h, w] float, features of the first and second crops.
            labels_a, labels_b: [B, H, W] integers, pseudo labels, resized to h, w.
            confidence_a, confidence_b: [B, H, W] float, their probabilities, resized too.
            boxes: [B, 2, 4] y0 x0 y1 x1 of the crops in image pixels, see `ops.overlap_pairs`.
            flips: [B, 2] bool, which crops are mirrored.
            weights: [B] of at least 0, each image's factor; None: all alike.
            seed: of the draw of pairs, see `ops.overlap_pairs`. None counts calls in the buffer
                `step`.
            group: process group over whose ranks this is one loss: that of one rank with all the
                images, its pairs and its bank, which is the same on every rank; seeds must agree.
                Value and gradient are as `ops.patch_consistency` has them over a group.

        Raises:
            ValueError: a shape, dtype or device that does not fit.
        """
        maps = (labels_a, labels_b, confidence_a, confidence_b)
        _check_views(view_a, view_b, maps, boxes, self.bank)
        weights = pixel_weights(weights, view_a, (view_a.shape[0],))
        size = (view_a.shape[2], view_a.shape[3])
        if seed is None:
            seed = self.step.clone()
            self.step += 1
        pairs = self._draw(boxes, flips, size, seed, group)
        rows = [
            ops.gather_pixels(view, index, normalize=self.normalize)
            for view, index in zip((view_a, view_b), pairs, strict=True)
        ]
        label_a, label_b = (
            _take(resize_nearest(maps, size), index, -1)
            for maps, index in zip((labels_a, labels_b), pairs, strict=True)
        )
        sure_a, sure_b = (
            _take(resize_nearest(maps, size), index, 0)
            for maps, index in zip((confidence_a, confidence_b), pairs, strict=True)
        )
        anchors, keys = torch.cat(rows), torch.cat((rows[1], rows[0])).detach()
        labels = torch.cat((label_b, label_a))  # of the keys, and so of what is compared with them
        labels = labels.masked_fill(labels == self.ignore_index, -1)
        sure, own = torch.cat((sure_b, sure_a)), torch.cat((sure_a, sure_b))
        counts = ((sure > self.confidence_threshold) & (sure > own)).to(torch.float32)
        if weights is not None:
            image = (pairs[0].clamp(min=0) // (size[0] * size[1])).repeat(2)
            counts = counts * weights[image] if weights.numel() else counts
        bank, bank_labels = self._negatives(
            keys, labels.masked_fill(sure < self.bank_confidence, -1), group_name(group)
        )
        loss = ops.patch_consistency(
            anchors,
            keys,
            bank,
            labels,
            bank_labels,
            weights=counts,
            temperature=self.temperature,
            backend=self.backend,
        )
        return loss if group is None else _over_ranks(loss, counts.sum(), group_name(group))

    def _draw(
        self,
        boxes: Tensor,
        flips: Tensor,
        size: tuple[int, int],
        seed: int | Tensor,
        group: dist.ProcessGroup | str | None,
    ) -> tuple[Tensor, Tensor]:
        """Return matching cells [num_pairs] of both views, -1 where they are another rank's."""
        (every_box, every_flip), first = gather_rows(group_name(group), boxes, flips)
        a, b = ops.overlap_pairs(
            every_box, every_flip, crop_size=size, stride=1, num_pairs=self.num_pairs, seed=seed
        )
        if group is None:
            return a, b
        cells = size[0] * size[1]
        first, count = first * cells, boxes.shape[0] * cells
        return _of_rank(a, first, count), _of_rank(b, first, count)

    def _negatives(self, keys: Tensor, labels: Tensor, group: str) -> tuple[Tensor, Tensor]:
        """Return all keys to compare with; each comes from one rank, and is 0 and -1 on others."""
        keys, labels = sum_over_ranks(keys, group), sum_over_ranks(labels + 1, group) - 1
        if self.bank is None:
            return keys, labels
        if self.training:
            self.bank.push(keys, labels)
        return self.bank.keys.to(keys.dtype), self.bank.labels


def _over_ranks(loss: Tensor, weight: Tensor, group: str) -> Tensor:
    """Turn a mean over this rank's anchors into that over all ranks', with DDP's mean exact.

    `weight` is the sum of this rank's weights.
    """
    ranks = place(group)[1]
    total = sum_over_ranks(weight, group)
    loss = loss * (ranks * weight / torch.where(total > 0, total, 1)).to(loss.dtype)
    mean = sum_over_ranks(loss.detach(), group) / ranks
    return loss + (mean - loss).detach()


def _check_views(
    view_a: Tensor,
    view_b: Tensor,
    maps: tuple[Tensor, Tensor, Tensor, Tensor],
    boxes: Tensor,
    bank: FeatureBank | None,
) -> None:
    check_feature_map("view_a", view_a)
    require(0 not in view_a.shape[2:], "view_a", tuple(view_a.shape), "[B, D, h, w], h, w > 0")
    if bank is not None:
        expected = f"[B, D, h, w], D = {bank.dim} as of the bank"
        require(view_a.shape[1] == bank.dim, "view_a", tuple(view_a.shape), expected)
    check_float("view_b", view_b)
    check_shape("view_b", view_b, tuple(view_a.shape))
    for name, given in zip(
        ("labels_a", "labels_b", "confidence_a", "confidence_b"), maps, strict=True
    ):
        _check_map(name, given, view_a, integer=name.startswith("labels"))
    check_shape("boxes", boxes, (view_a.shape[0], 2, 4))
    check_device("boxes", boxes, view_a)


def _take(maps: Tensor, index: Tensor, fill: int) -> Tensor:
    """Return values [N] of maps at `index` into them flattened, and `fill` where it is -1."""
    flat = maps.flatten()
    if not flat.dtype.is_floating_point:
        flat = flat.to(torch.int64)  # uint8 labels have no -1
    if flat.numel() == 0:
        return flat.new_full(index.shape, fill)
    return torch.where(index < 0, fill, flat[index.clamp(min=0)])
