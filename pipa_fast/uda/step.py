# SPDX-License-Identifier: Apache-2.0
"""One step of training: a forward and backward pass per group of images, gradients reduced once.

The groups are the source images, the class-mixed images, the masked images and the
overlapping target crops. Each is backpropagated as soon as its losses are known, so that one
group's activations live at a time.
"""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pipa_fast.data.augmentation import STRONG, VIEWS, distort, strong_augment
from pipa_fast.data.batch import Batch
from pipa_fast.data.random import generator, uniform
from pipa_fast.models import Outputs, SegmentationNetwork, Window
from pipa_fast.ops import pseudo_labels
from pipa_fast.trace import trace_range
from pipa_fast.uda.accumulation import InParts
from pipa_fast.uda.config import AdaptationConfig
from pipa_fast.uda.mixing import block_masks, class_masks, mix
from pipa_fast.uda.objectives import Objective
from pipa_fast.uda.outputs import StepOutputs, mean_over_ranks
from pipa_fast.uda.teacher import Teacher


class Taught(NamedTuple):
    """What the teacher says of the target images."""

    labels: Tensor  # [B, H, W] int64, 255 in the margins
    confidence: Tensor  # [B, H, W] float32
    weights: Tensor  # [B, H, W] float32: the confident share of the batch, 0 in the margins


class AdaptationStep:
    """Runs the objectives of a recipe on a batch and leaves the summed gradients in the student."""

    def __init__(
        self,
        student: SegmentationNetwork | InParts | DistributedDataParallel,
        teacher: Teacher | None,
        objectives: list[Objective],
        config: AdaptationConfig,
        *,
        seed: int,
        autocast: Callable[[], contextlib.AbstractContextManager],
        group: dist.ProcessGroup | None = None,
    ) -> None:
        if config.needs_teacher and teacher is None:
            raise ValueError("teacher must be given: the recipe's objectives read its labels")
        self.student, self.teacher, self.objectives = student, teacher, objectives
        self.config, self.seed, self.group = config, seed, group
        self.autocast = autocast
        strength = config.mixed.jitter
        self.jitter = replace(
            STRONG, brightness=strength, contrast=strength, saturation=strength, hue=strength
        )
        self.make = {
            "source": self._source,
            "mixed": self._mixed,
            "masked": self._masked,
            "patch": self._patch,
        }
        self.taught: Taught | None = None  # of this step's target images, once they were labelled

    def __call__(
        self, batch: Batch, iteration: int, scale: Callable[[Tensor], Tensor] = lambda loss: loss
    ) -> dict[str, Tensor]:
        """Backpropagate every active objective and return their detached values by name.

        `iteration` is the step's number on the host (the batch holds it on the device); `scale`
        multiplies what is backpropagated, as a GradScaler does.
        """
        self.taught = None
        if self.config.source.augment:
            images = batch.source_image
            images = distort(images, seed=self.seed, iteration=batch.iteration, index=batch.index)
            batch = batch._replace(source_image=images)
        active = [o for o in self.objectives if o.weight_at(iteration) > 0]
        groups = [g for g in self.make if any(o.group == g for o in active)]
        values: dict[str, Tensor] = {}
        for group in groups:
            mine = [o for o in active if o.group == group]
            last = group == groups[-1]
            embed = tuple(dict.fromkeys(name for o in mine for name in o.embed))
            touch = last and isinstance(self.student, DistributedDataParallel)
            seen = batch.target_crops if group == "patch" else batch.target_image
            with self._reduce_only(last=last):
                with trace_range(f"forward:{group}", seen), self.autocast():
                    outputs = self.make[group](batch, iteration, embed=embed, touch=touch)
                total = torch.zeros((), device=batch.source_image.device)
                for objective in mine:
                    # Contrasts take their rows in autocast's dtype; every loss is float32.
                    with (
                        trace_range(f"objective:{objective.name}", outputs.labels),
                        self.autocast(),
                    ):
                        value = objective(outputs)
                    values[objective.name] = value.detach()
                    total = total + objective.weight_at(iteration) * value
                with trace_range(f"backward:{group}", seen):
                    # A loss that is not finite may have gradients that are: make none of them so,
                    # and DDP's mean tells the other ranks.
                    told = torch.where(total.isfinite(), 1.0, torch.nan)
                    scale(total * told).backward()
        self._forget_idle(active)
        return values

    @property
    def network(self) -> SegmentationNetwork:
        """The student itself, whatever wraps it."""
        student = self.student
        while isinstance(student, DistributedDataParallel | InParts):
            student = student.module
        return student

    def _forget_idle(self, active: list[Objective]) -> None:
        """Take DDP's zeros from heads that no term used.

        A zero gradient is not none: the optimizer would decay such a head and count a step for it,
        which on one rank it does not.
        """
        used = {name for o in active for name in o.embed}
        for head in self.network.idle(used, classified=any(o.classifies for o in active)):
            for parameter in head.parameters():
                parameter.grad = None

    def _reduce_only(self, *, last: bool) -> contextlib.AbstractContextManager:
        """Let DDP reduce gradients in the step's last backward pass alone."""
        if last or not isinstance(self.student, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.student.no_sync()

    def _forward(self, group: str, images: Tensor, **how: Any) -> Outputs:
        with trace_range(f"student:{group}", images):
            return self.student(images, **how)

    def _window(self, group: str, iteration: int, images: Tensor) -> Window | None:
        """Draw where a network with detail looks closely, the same on every rank (HRDA)."""
        size = self.network.detail_size
        if size is None:
            return None
        stride, draw = self.network.stride, generator(self.seed, f"detail:{group}", iteration, 0)
        y, x = (
            stride * int(draw.integers((length - side) // stride + 1))
            for length, side in zip(images.shape[2:], size, strict=True)
        )
        return Window(y, x, y + size[0], x + size[1])

    @torch.no_grad()
    def _teacher_features(self, images: Tensor) -> Tensor:
        assert self.teacher is not None, "checked when the step was built"
        return self.teacher.network.fused(images)

    def _outputs(
        self,
        batch: Batch,
        student: Outputs,
        labels: Tensor,
        weights: Tensor | None = None,
        confidence: Tensor | None = None,
    ) -> StepOutputs:
        draw = uniform(self.seed, "step", batch.iteration, batch.iteration[None], 1)
        seed = (draw[0, 0] * 2**31).long()  # the same on every rank
        return StepOutputs(batch, student, labels, weights, confidence, seed, self.group)

    def _source(self, batch: Batch, iteration: int, **how: Any) -> StepOutputs:
        window = self._window("source", iteration, batch.source_image)
        student = self._forward("source", batch.source_image, window=window, **how)
        return self._outputs(batch, student, batch.source_label)

    def _teach(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the teacher's labels and confidence [B, H, W], and the confident share []."""
        assert self.teacher is not None, "checked when the step was built"
        with trace_range("teacher", images), torch.no_grad():
            logits = self.teacher(images)
            size = (images.shape[-2], images.shape[-1])
            return pseudo_labels(logits, size=size, threshold=self.config.mixed.threshold)

    def _target(self, batch: Batch) -> Taught:
        """Return the teacher's labels of the target images; a step's groups share one pass."""
        if self.taught is None:
            config = self.config.mixed
            labels, confidence, share = self._teach(batch.target_image)
            share = mean_over_ranks(share, self.group).to(confidence.dtype)
            counts = batch.target_valid.clone()
            counts[:, : config.ignore_top] = False
            counts[:, counts.shape[1] - config.ignore_bottom :] = False
            self.taught = Taught(labels.masked_fill(~counts, 255), confidence, share * counts)
        return self.taught

    def _mixed(self, batch: Batch, iteration: int, **how: Any) -> StepOutputs:
        taught = self._target(batch)
        with trace_range("mix", batch.target_image), torch.no_grad():
            mask = class_masks(
                batch.source_label,
                seed=self.seed,
                iteration=batch.iteration,
                index=batch.index,
                group=self.group,
            )
            mixed = mix(
                mask,
                (batch.source_image, batch.source_label),
                (batch.target_image, taught.labels, taught.weights),
            )
            images = mixed.images
            if self.config.mixed.augment:
                images = self._strong(batch, images, "strong")
            confidence = taught.confidence.masked_fill(mask, 1.0)
        window = self._window("mixed", iteration, images)
        student = self._forward("mixed", images, window=window, **how)
        return self._outputs(batch, student, mixed.labels, mixed.weights, confidence)

    def _masked(self, batch: Batch, iteration: int, **how: Any) -> StepOutputs:
        config, taught = self.config.masked, self._target(batch)
        with trace_range("mask", batch.target_image), torch.no_grad():
            images, (labels, confidence, weights) = batch.target_image, taught
            if config.images == "both":
                # Slots take turns: so a batch of one image shows both domains, in two steps.
                turn = ((batch.index + batch.iteration) % 2 == 0)[:, None, None]
                images, labels, weights = mix(
                    turn, (batch.source_image, batch.source_label), (images, labels, weights)
                )
                confidence = confidence.masked_fill(turn, 1.0)
            if config.augment:
                images = self._strong(batch, images, "masked")
            shown = block_masks(
                images,
                block=config.block,
                ratio=config.ratio,
                seed=self.seed,
                iteration=batch.iteration,
                index=batch.index,
            )
            # The mean colour is 0 to the encoder, as in the release.
            images = torch.where(shown, images, self.network.mean)
        window = self._window("masked", iteration, images)
        student = self._forward("masked", images, window=window, **how)
        return self._outputs(batch, student, labels, weights, confidence)

    def _strong(self, batch: Batch, images: Tensor, stream: str) -> Tensor:
        return strong_augment(
            images,
            seed=self.seed,
            iteration=batch.iteration,
            index=batch.index,
            stream=stream,
            augmentation=self.jitter,
        )

    def _patch(self, batch: Batch, _iteration: int, **how: Any) -> StepOutputs:
        config = self.config.patch
        crops = torch.cat((batch.target_crops[:, 0], batch.target_crops[:, 1]))
        if config.first_is_target:
            taught = self._target(batch)
            labels, confidence, _ = self._teach(batch.target_crops[:, 1])
            labels = torch.cat((taught.labels, labels))
            confidence = torch.cat((taught.confidence, confidence))
        else:
            labels, confidence, _ = self._teach(crops)
        views = crops
        if config.augment:
            index = torch.cat((2 * batch.index, 2 * batch.index + 1))
            with trace_range("augment crops", crops):
                views = strong_augment(
                    crops,
                    seed=self.seed,
                    iteration=batch.iteration,
                    index=index,
                    stream="views",
                    augmentation=VIEWS,
                )
        fused = self._teacher_features(views) if config.branch == "teacher" else None
        student = self._forward("patch", views, fused=fused, context_only=True, **how)
        return self._outputs(batch, student, labels, None, confidence)
