# SPDX-License-Identifier: Apache-2.0
"""The inputs that `bench.precision` tries: temperatures, balances, sizes, adversarial rows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.problem import harmonic_labels, unit_rows

D = 64
KEYS = 1500  # of the patch consistency's bank
Generator = torch.Generator
Rows = Callable[[int, Generator], Tensor]
Labels = Callable[[int, Generator], Tensor]


def random_rows(n: int, g: Generator) -> Tensor:
    """Unit rows without structure."""
    return unit_rows(n, D, g)


def equal_rows(n: int, g: Generator) -> Tensor:
    """One row, n times."""
    return unit_rows(1, D, g).expand(n, D).clone()


def opposite_rows(n: int, g: Generator) -> Tensor:
    """Two rows, one the negative of the other, in turns."""
    return unit_rows(1, D, g) * (1 - 2 * (torch.arange(n) % 2))[:, None]


def near_duplicates(n: int, g: Generator) -> Tensor:
    """Rows in pairs that differ by a ten-thousandth."""
    half = unit_rows((n + 1) // 2, D, g).repeat_interleave(2, 0)[:n]
    return F.normalize(half + 1e-4 * unit_rows(n, D, g), dim=1)


def skewed(n: int, g: Generator) -> Tensor:
    """16 classes, class c as often as 1/(c + 1) says."""
    return harmonic_labels(n, 16, g)


def balanced(n: int, g: Generator) -> Tensor:
    """16 classes, equally often."""
    return (torch.arange(n) % 16)[torch.randperm(n, generator=g)]


def in_turns(n: int, g: Generator) -> Tensor:
    """Two classes in turns: of opposite rows, each class is one row."""
    return torch.arange(n) % 2


def across(n: int, g: Generator) -> Tensor:
    """Two classes, every other pair: of opposite rows, each class has both."""
    return torch.arange(n) // 2 % 2


def half_in_one(n: int, g: Generator) -> Tensor:
    """Half of the rows in one class, the rest in 18."""
    rest = torch.randint(1, 19, (n,), generator=g)
    return torch.where(torch.rand(n, generator=g) < 0.5, 0, rest)


def pairs(n: int, g: Generator) -> Tensor:
    """Classes of two; no class is 255, the label that is ignored."""
    classes = torch.arange(n) // 2
    return (classes + (classes >= 255))[torch.randperm(n, generator=g)]


def with_single(n: int, g: Generator) -> Tensor:
    """Skewed, and one class of one row."""
    return torch.cat([skewed(n - 1, g), torch.tensor([16])])


def one_class(n: int, g: Generator) -> Tensor:
    """Nothing to be unlike."""
    return torch.zeros(n, dtype=torch.int64)


@dataclass(frozen=True)
class Case:
    """One input of an op."""

    title: str
    op: str = "pixel_contrast"
    denominator: str = "negatives"
    n: int = 768
    temperature: float = 0.1
    rows: Rows = random_rows
    labels: Labels = skewed

    @property
    def group(self) -> str:
        """The table that it stands in."""
        form = f', denominator="{self.denominator}"' if self.op == "pixel_contrast" else ""
        return self.op + form

    def make(self, device: torch.device) -> tuple[Tensor, dict[str, Any]]:
        """Return the first argument of the op and the others."""
        g = torch.Generator().manual_seed(0)
        x, y = self.rows(self.n, g), self.labels(self.n, g)
        found: dict[str, Any] = {"temperature": self.temperature}
        if self.op == "pixel_contrast":
            found |= {"labels": y, "denominator": self.denominator}
        else:
            near = F.normalize(x + 0.3 * unit_rows(self.n, D, g), dim=1)
            found |= {"positives": near, "bank": self.rows(KEYS, g)}
            found |= {"anchor_labels": y, "bank_labels": self.labels(KEYS, g)}
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in found.items()}
        return x.to(device), moved


def usual() -> Iterator[Case]:
    """Yield the cases of one op and form."""
    for temperature in (0.03, 0.05, 0.07, 0.1, 0.3, 1.0):
        yield Case(f"temperature {temperature}", temperature=temperature)
    for labels, title in (
        (balanced, "16 classes, balanced"),
        (half_in_one, "half of the rows in one class"),
        (pairs, "classes of two"),
        (with_single, "a class of one"),
        (one_class, "one class only"),
    ):
        yield Case(title, labels=labels)
    for n in (67, 256, 2048):
        yield Case(f"N = {n}", n=n, labels=balanced)
    for temperature in (0.03, 0.1, 1.0):
        end = f", temperature {temperature}"
        case = Case("", temperature=temperature)
        yield replace(case, title="all rows equal" + end, rows=equal_rows)
        yield replace(case, title="opposite classes" + end, rows=opposite_rows, labels=in_turns)
        yield replace(
            case, title="opposite rows in a class" + end, rows=opposite_rows, labels=across
        )
        yield replace(case, title="near-duplicates" + end, rows=near_duplicates)
    # beyond the kernels' fixed shift
    yield Case(
        "opposite classes, temperature 0.01",
        temperature=0.01,
        rows=opposite_rows,
        labels=in_turns,
    )


CASES = tuple(
    replace(case, op=op, denominator=denominator)
    for op, denominator in (
        ("pixel_contrast", "negatives"),
        ("pixel_contrast", "all"),
        ("patch_consistency", "negatives"),
    )
    for case in usual()
)
