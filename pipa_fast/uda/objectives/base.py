# SPDX-License-Identifier: Apache-2.0
"""What every objective is."""

from typing import ClassVar, Literal

from torch import Tensor, nn

from pipa_fast.uda.outputs import StepOutputs, ramp

Group = Literal["source", "mixed", "masked", "patch"]


class Objective(nn.Module):
    """One loss term: which images it needs, when it counts, and its value."""

    embed: ClassVar[tuple[str, ...]] = ()  # projection heads that its forward pass must run
    classifies: ClassVar[bool] = True  # whether its gradient reaches what makes the logits

    def __init__(self, name: str, group: Group, weight: float, start: int, length: int) -> None:
        super().__init__()
        self.name = name
        self.group: Group = group
        self.weight = weight
        self.start = start
        self.length = length

    def weight_at(self, iteration: int) -> float:
        """Return the term's weight at `iteration`, warm-up included."""
        return self.weight * ramp(iteration, self.start, self.length)

    def cautions(self, *, iterations: int, images: int, classes: int) -> list[str]:
        """Return what to tell of this term before a run of `images` a step on all ranks."""
        if self.start < iterations:
            return []
        return [f"takes no part: it starts at step {self.start}, and the run ends at {iterations}"]

    def forward(self, outputs: StepOutputs) -> Tensor:
        """Return the unweighted scalar loss [] of this rank's share of the batch."""
        raise NotImplementedError(f"{type(self).__name__} defines no loss")
