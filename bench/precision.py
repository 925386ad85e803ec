# SPDX-License-Identifier: Apache-2.0
"""Writes how large the rounding errors are: every backend and dtype beside the eager formula.

python -m bench.precision --output docs/precision.md

Both are compared with float64 on the same, already rounded, inputs. The exit status is 1 where ours
errs more than 1.1 times as much as the eager formula plus TOLERANCE.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.contenders import backends, peers_of
from bench.machine import cpu_flags, device_name
from bench.precision_cases import CASES, Case
from bench.problem import DTYPES, rounded, short
from bench.program import make_parser
from pipa_fast import ops

FACTOR = 1.1
# Errors that have a bar, and what rounding may add to the eager formula's.
# The losses are float32's whatever the features are; the gradient is rounded to their dtype.
BARS = ("loss", "gradient", "bias")
TOLERANCE = {
    torch.float32: (1e-6, 2e-6, 1e-6),
    torch.float16: (1e-6, 5e-5, 1e-5),
    torch.bfloat16: (1e-6, 4e-4, 1e-4),
}

CANCELLED = 1e-5  # a gradient this small beside the positives' pull has no relative error


class Errors(NamedTuple):
    """Of one contender against float64. s is ‖g*‖, or 1/(τ√N) where ‖g*‖ is nothing beside that:
    what the pull of the positives alone amounts to."""

    loss: float  # |L - L*| / |L*|, or |L - L*| where |L*| < 1e-3
    gradient: float  # ‖g - g*‖ / s
    angle: float  # 1 - cosine of g and g*; 0 where g* is nothing
    bias: float  # (g - g*)·g* / ‖g*‖²: positive where the gradient is too long

    @property
    def finite(self) -> bool:
        """Whether the contender gave numbers."""
        return all(map(math.isfinite, self))


@dataclass(frozen=True)
class Line:
    """One case in one dtype."""

    case: Case
    dtype: torch.dtype
    eager: Errors
    ours: dict[str, Errors | str]  # of each backend, or why it did not run

    def too_large(self) -> list[str]:
        """Return which of our errors are above the bar."""
        found = []
        for name, errors in self.ours.items():
            if isinstance(errors, str):
                continue
            if not errors.finite:
                found.append(f"{self.title}: {name} is not finite")
            for what, tolerance in zip(BARS, TOLERANCE[self.dtype], strict=True):
                own, theirs = abs(getattr(errors, what)), abs(getattr(self.eager, what))
                bar = FACTOR * theirs + tolerance if math.isfinite(theirs) else 10 * tolerance
                if own > bar:
                    found.append(f"{self.title}: {name}'s {what} error {own:.1e} > {bar:.1e}")
        return found

    @property
    def title(self) -> str:
        """What was computed."""
        return f"{self.case.title}, {short(self.dtype)}"


def call(function: Callable[..., Tensor], x: Tensor, arguments: dict[str, Any]) -> tuple:
    """Return a loss and its gradient in float64."""
    leaf = x.detach().requires_grad_()
    loss = function(leaf, **arguments)
    return loss.detach().double(), torch.autograd.grad(loss, leaf)[0].double()


def scale_of(true_g: Tensor, temperature: float) -> float:
    """Return what errors of a gradient are measured by."""
    norm, pull = float(true_g.norm()), 1 / (temperature * math.sqrt(len(true_g)))
    return norm if norm > CANCELLED * pull else pull


def compare(found: tuple, true: tuple, temperature: float) -> Errors:
    """Return the errors of (loss, gradient)."""
    (loss, g), (true_loss, true_g) = found, true
    scale = scale_of(true_g, temperature)
    norm, magnitude = float(true_g.norm()), float(true_loss.abs())
    error = float((loss - true_loss).abs()) / (magnitude if magnitude >= 1e-3 else 1.0)
    if not bool(torch.isfinite(g).all()):
        return Errors(error, math.nan, math.nan, math.nan)
    angle = bias = 0.0
    if norm == scale:
        angle = 1 - float((g * true_g).sum()) / max(float(g.norm()) * norm, 1e-300)
        bias = float(((g - true_g) * true_g).sum()) / norm**2
    return Errors(error, float((g - true_g).norm()) / scale, angle, bias)


def measure(case: Case, dtype: torch.dtype, device: torch.device) -> Line:
    """Return the errors of eager and of every backend in one case."""
    x, arguments = case.make(device)
    x = x.to(dtype)
    same = {k: rounded(v, dtype) for k, v in arguments.items()}
    wide = {k: rounded(v, torch.float64) for k, v in same.items()}
    function = getattr(ops, case.op)
    temperature = arguments["temperature"]
    true = call(lambda x, **k: function(x, **k, backend="reference"), x.double(), wide)
    # As the released code: float32 whatever the features are, and the gradient in their dtype.
    eager = peers_of(case.op)["eager"].make()
    known = {k: v for k, v in same.items() if k != "ignore_index"}
    theirs = call(lambda x, **k: eager(x.float(), **k), x, known)
    ours: dict[str, Errors | str] = {}
    for name in backends(case.op, device):
        try:
            found = call(lambda x, b=name, **k: function(x, **k, backend=b), x, same)
        except ValueError as error:
            ours[name] = str(error)
        else:
            ours[name] = compare(found, true, temperature)
    return Line(case, dtype, compare(theirs, true, temperature), ours)


def cell(errors: Errors | str) -> str:
    """Return a table's cell."""
    if isinstance(errors, str):
        return "cannot run"
    if not errors.finite:
        return "NaN or inf"
    loss, gradient, angle, bias = errors
    return f"{loss:.0e} · {gradient:.0e} · {abs(angle):.0e} · {bias:+.0e}"


def tables(lines: Sequence[Line]) -> list[str]:
    """Return the Markdown tables, one for each op and form."""
    text, names = [], list(lines[0].ours)
    for group in dict.fromkeys(line.case.group for line in lines):
        members = [line for line in lines if line.case.group == group]
        text += ["", f"## {group}", ""]
        text += [
            f"| case | dtype | eager | {' | '.join(names)} |",
            "|---|---|" + "---|" * (1 + len(names)),
        ]
        for line in members:
            cells = [cell(line.eager), *(cell(line.ours[name]) for name in names)]
            text.append(f"| {line.case.title} | {short(line.dtype)} | {' | '.join(cells)} |")
    return text


INTRODUCTION = """\
Each cell holds four errors against float64 on the same, already rounded, inputs: of the loss
(relative; absolute below 0.001), of the gradient (relative L2), of its direction (1 - cosine) and
its signed bias (by how much it is too long along the true one, relative). A gradient that cancels
to nothing is measured beside 1/(τ√N), what the pull of the positives alone amounts to.

`eager` is the published formula (`bench/peers`), computed in float32 whatever the dtype of the
features is, as the released code does; its gradient is rounded to that dtype, like ours.

The bar: each of our errors is at most {factor} times eager's plus

| dtype | loss | gradient | bias |
|---|---|---|---|
{bars}

and where eager gives no number, at most ten times that."""


def document(lines: Sequence[Line], device: torch.device, command: str) -> str:
    """Return docs/precision.md."""
    nan = [
        line
        for line in lines
        if not line.eager.finite
        and any(isinstance(e, Errors) and e.finite for e in line.ours.values())
    ]
    wrong = [text for line in lines for text in line.too_large()]
    bars = "\n".join(
        f"| {short(d)} | {loss:.0e} | {gradient:.0e} | {bias:.0e} |"
        for d, (loss, gradient, bias) in TOLERANCE.items()
    )
    verdict = f"above the bar: {len(wrong)}" if wrong else "every one is within the bar"
    where = f"{device_name(device)} ({', '.join(cpu_flags())}), torch {torch.__version__}"
    text = [
        "# Precision",
        "",
        f"Written by `{command}` on {where}.",
        "The command fails where a bar does not hold.",
        "",
        INTRODUCTION.format(factor=FACTOR, bars=bars),
        "",
        f"**{len(lines)} lines; {verdict}.**",
        "",
        *(f"- {text}" for text in wrong),
        *([""] if wrong else []),
        "The eager formula gives NaN or inf, and ours numbers, for:",
        "",
        *[f"- {title}" for title in dict.fromkeys(f"{x.case.group}: {x.case.title}" for x in nan)],
        *tables(lines),
    ]
    return "\n".join(text) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every case, write the document, and return whether a bar was missed."""
    parser = make_parser("bench.precision", __doc__)
    parser.add_argument("--output", type=Path, required=True, help="the Markdown file")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument(
        "--max-rows", type=int, help="leave out larger cases, shrink the usual ones"
    )
    args = parser.parse_args(argv)
    device, cases = torch.device(args.device), list(CASES)
    command = "python -m bench.precision --output docs/precision.md"
    if args.max_rows:
        cases = [replace(case, n=min(case.n, args.max_rows)) for case in cases]
        command = f"python -m bench.precision --max-rows {args.max_rows}"
    lines = [measure(case, DTYPES[d], device) for case in cases for d in args.dtypes]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(document(lines, device, command))
    wrong = [text for line in lines for text in line.too_large()]
    for text in wrong:
        print(text, file=sys.stderr)
    print(f"{len(lines)} lines, {len(wrong)} above the bar -> {args.output}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
