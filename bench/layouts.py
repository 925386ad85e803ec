# SPDX-License-Identifier: Apache-2.0
"""The published recipes at a size that two CPU cores bear, on streets in the real layouts.

python -m bench.layouts --out runs/layouts

The embedded pair is written as GTA5 and as Cityscapes and prepared, then each recipe is trained
with torchrun on two processes: half the way, then resumed to the end, evaluated and reported. The
networks start from random weights, so that the scores tell that everything runs, not what a method
is worth.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from bench.program import make_parser

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ("gta2cs_source", "gta2cs_daformer", "gta2cs_daformer_pipa", "gta2cs_hrda_pipa")
RECIPES += ("gta2cs_mic_pipa",)


def reduced(recipe: str, data: Path, iterations: int) -> dict[str, Any]:
    """Return a recipe with small crops, MiT-B0 from random weights, and few iterations."""
    crop = [64, 128]
    return {
        "base": recipe,
        "recipe": recipe,
        "iterations": iterations,
        "precision": "fp32",
        "data": {
            "source_root": str(data / "gta5"),
            "target_root": str(data / "cityscapes"),
            "source_size": None,
            "target_size": None,
            "pseudo_margins": None,
            "crop": crop,
            "patch_crop": [64, 64],
            "patch_scale": [1.0, 1.0],
            "min_pixels": 50,
            "batch_size": 2,
            "num_workers": 0,
        },
        "model": {"encoder": "mit_b0", "weights": None, "hrda": {"detail": [32, 64]}},
        "adaptation": {
            # from random weights, few pixels are as sure as the published threshold asks
            "mixed": {"ignore_top": 0, "ignore_bottom": 0, "threshold": 0.5},
            # so that no window is hidden whole: zeros stay zeros through a network from random
            # weights, and their gradients overflow
            "masked": {"block": 8},
            "patch": {"start": iterations // 4},
            "ema_alpha": 0.99,
        },
        "optimizer": {"lr": 6e-4, "head_lr_multiplier": 1.0, "warmup": iterations // 20},
        "evaluation": {"size": None, "crop": None, "stride": None},
        "run": {
            "log_every": 20,
            "eval_every": max(1, iterations // 2),
            "checkpoint_every": max(1, iterations // 4),
        },
    }


def call(words: Sequence[str], log: Path, *, ranks: int = 0) -> None:
    """Run a module of pipa_fast, under torchrun if `ranks`, with its output in `log`.

    Raises:
        RuntimeError: it failed.
    """
    launcher = [sys.executable, "-m"]
    if ranks:
        launcher += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    with open(log, "a") as out:
        done = subprocess.run(
            [*launcher, *words],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}; see {log}")


def prepare(data: Path, log: Path) -> None:
    """Write streets in both layouts and prepare them as any download."""
    for layout in ("gta5", "cityscapes"):
        folder = str(data / layout)
        call(["pipa_fast.prepare", "streets", "--layout", layout, "--out", folder], log)
        call(["pipa_fast.prepare", layout, "--root", folder, "--subset"], log)


def train(recipe: str, out: Path, iterations: int, ranks: int) -> dict[str, Any]:
    """Train a recipe half the way, resume it to the end, evaluate and report it."""
    config, folder, log = out / f"{recipe}.yaml", out / recipe, out / f"{recipe}.log"
    config.write_text(yaml.safe_dump(reduced(recipe, out / "data", iterations)))
    words = ["pipa_fast.train", "--config", str(config), "--run.dir", str(out)]
    words += ["--run.name", recipe, "--run.resume", "auto"]
    stop = ["--run.stop_after", str(iterations // 2)]
    call([*words, *stop], log, ranks=ranks)
    call(words, log, ranks=ranks)
    call(["pipa_fast.evaluate", "--run", str(folder)], log)
    resumed = [line for line in log.read_text().splitlines() if "resumed" in line]
    results = json.loads((folder / "results.json").read_text())
    return {"recipe": recipe, "miou": results["miou"], "resumed": len(resumed) > 0}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = make_parser("bench.layouts", __doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "layouts")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--ranks", type=int, default=2)
    args = parser.parse_args(argv)
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    prepare(out / "data", out / "prepare.log")
    rows = [train(recipe, out, args.iterations, args.ranks) for recipe in args.recipes]
    (out / "layouts.json").write_text(json.dumps(rows, indent=2) + "\n")
    table = Table(title=f"{args.iterations} iterations on {args.ranks} processes", box=SIMPLE)
    for column in ("recipe", "mIoU [%]", "above source-only"):
        table.add_column(column, justify="left" if column == "recipe" else "right")
    for row in rows:
        gain = f"{row['miou'] - rows[0]['miou']:+.1f}" if row is not rows[0] else ""
        table.add_row(row["recipe"], f"{row['miou']:.1f}", gain)
    Console().print(table)


if __name__ == "__main__":
    main()
