# SPDX-License-Identifier: Apache-2.0
"""`python -m bench scaling_step`: a whole training step on 1, 2 and 4 processes, and a model of it.

python -m bench scaling_step
python -m bench scaling_step --ranks 1 2 --recipe streets_pipa --steps 20 --save

Each rank is a gloo process with one thread and steps on as many images whatever the number of
ranks. Where there are more ranks than cores, they take turns. The model of W ranks' step:

    turns (step(1) - contrast(1))    what a rank does on its own images but for the contrasts
    + contrast(W)                    the pixel contrasts of all ranks' anchors, on each of them
    + reduce(W)                      all_reduce of as many bytes as the gradients have

The last two are measured alone, on as many ranks. Batch-norm layers are frozen everywhere, as
they are on a CPU unless told.
"""

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from bench.machine import machine
from bench.program import make_parser
from bench.rows import keep, load, results_folder, write
from bench.scaling import draw, seconds_of
from pipa_fast import ops
from pipa_fast.ops._checks import group_name
from pipa_fast.ops._ranks import join_rows
from pipa_fast.program import cores
from pipa_fast.training import distributed
from pipa_fast.training.config import load as load_config
from pipa_fast.training.config import merge, read_recipe
from pipa_fast.training.distributed import World
from pipa_fast.training.trainer import Trainer
from pipa_fast.uda.objectives.pixel_contrast import PixelContrast


def contrasts(trainer: Trainer) -> None:
    """Compute what a step's pixel contrasts compute, of as many anchors, and their gradients."""
    for term in trainer.step.objectives:
        count = getattr(term.loss, "num_anchors", None) if isinstance(term, PixelContrast) else None
        if isinstance(count, int):
            x, labels = draw(count, trainer.config.model.pixel_dim)
            anchors = join_rows(x.requires_grad_(), group_name(trainer.world.group))
            ops.pixel_contrast(anchors, labels).backward()


def measure(world: World, folder: str, recipe: str, steps: int) -> dict[str, Any]:
    """Return a row: the times of steps, and of reducing as many bytes as their gradients have."""
    changes: dict[str, Any] = {"device": "cpu", "model": {"batch_norm": "frozen"}}
    config = load_config(merge(read_recipe(recipe), changes))
    config.run.dir = folder
    trainer = Trainer(config, world)
    trainer.iteration = config.iterations // 2  # when every term counts
    batch = next(trainer._batches())
    times = seconds_of(lambda: trainer._train_step(batch), steps)
    size = sum(p.numel() * p.element_size() for p in trainer.network.parameters())
    contrast = seconds_of(lambda: contrasts(trainer), steps)
    reduced = [0.0]
    if world.size > 1:
        gradients = torch.zeros(size // 4)
        reduced = seconds_of(lambda: dist.all_reduce(gradients), steps)
    return {
        "op": "scaling_step",
        "status": "ok",
        "recipe": recipe,
        "ranks": world.size,
        "images": config.data.batch_size,
        "p50_ms": statistics.median(times) * 1e3,
        "contrast_ms": statistics.median(contrast) * 1e3,
        "gradient_bytes": size,
        "reduce_ms": statistics.median(reduced) * 1e3,
    }


def work(rank: int, ranks: int, folder: str, recipe: str, steps: int, out: str) -> None:
    """Measure in one of the processes."""
    torch.set_num_threads(1)
    if ranks > 1:
        where = f"file://{folder}/rendezvous{ranks}"
        dist.init_process_group("gloo", init_method=where, rank=rank, world_size=ranks)
    row = measure(World(rank, ranks, rank, torch.device("cpu")), folder, recipe, steps)
    if rank == 0:
        write(Path(out), [row])
    distributed.end()


def explain(rows: Sequence[dict[str, Any]], cores: int) -> list[dict[str, Any]]:
    """Return the rows with what the model says of them and how far it is off."""
    (alone,) = [row["p50_ms"] - row["contrast_ms"] for row in rows if row["ranks"] == 1]
    made = []
    for row in rows:
        turns = max(1.0, row["ranks"] / cores)
        # both were measured while ranks took turns; one thread a rank hides none of it
        said = turns * alone + row["contrast_ms"] + row["reduce_ms"]
        added = {"cores": cores, "model_ms": said, "model_error": said / row["p50_ms"] - 1}
        made.append(row | added)
    return made


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the rows as a table."""
    made = Table(box=SIMPLE, caption="images: of all ranks, in a second")
    for column in ("ranks", "images/s", "step [ms]", "contrasts", "reduction", "model [ms]", "off"):
        made.add_column(column, justify="right")
    for r in rows:
        made.add_row(
            str(r["ranks"]),
            f"{r['ranks'] * r['images'] / r['p50_ms'] * 1e3:.1f}",
            f"{r['p50_ms']:.0f}",
            f"{r['contrast_ms']:.1f}",
            f"{r['reduce_ms']:.1f}",
            f"{r['model_ms']:.0f}",
            f"{r['model_error']:+.0%}",
        )
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = make_parser("bench scaling_step", __doc__)
    add = parser.add_argument
    add("--ranks", type=int, nargs="+", default=[1, 2, 4], help="processes; 1 must be among them")
    add("--recipe", default="streets_pipa", help="recipe name or YAML file")
    add("--steps", type=int, default=20, help="that are timed, after one that is not")
    add("--json", type=Path, help="write the rows there, one JSON object a line")
    add("--save", action="store_true", help="write bench/results/DEVICE/scaling_step.json")
    args = parser.parse_args(argv)
    if 1 not in args.ranks:
        parser.error(f"--ranks must hold 1, to which the others are compared; got {args.ranks}")
    torch.set_num_threads(1)
    where, measured = machine(torch.device("cpu")), []
    with tempfile.TemporaryDirectory() as folder:
        for ranks in args.ranks:
            out = str(Path(folder) / f"{ranks}.json")
            arguments = (ranks, folder, args.recipe, args.steps, out)
            mp.spawn(work, args=arguments, nprocs=ranks, daemon=False)
            measured += load([Path(out)])
    rows = [where | row for row in explain(measured, cores())]
    Console().print(table(rows))
    saved = results_folder(where, gpu=False) / "scaling_step.json" if args.save else None
    keep(rows, args.json, saved)


if __name__ == "__main__":
    main()
