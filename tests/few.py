# SPDX-License-Identifier: Apache-2.0
"""Two scenes of a dataset, where the loop is tested and not the streets."""

from typing import Any

from pipa_fast.data.datasets import build_dataset
from pipa_fast.data.sample import Sample


class Few:
    """The first two scenes of what `build_dataset` makes."""

    def __init__(self, name: str, split: str, root: str | None = None, **options: Any) -> None:
        self.whole = build_dataset(name, split, root, **options)
        self.eval_classes = self.whole.eval_classes

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < 2:
            raise IndexError(index)
        return self.whole[index]

    def image(self, index: int):
        return self[index].image

    def label(self, index: int):
        return self[index].label
