# SPDX-License-Identifier: Apache-2.0
"""What each term is worth on the embedded streets pair, over seeds.

    python -m bench.streets_ablation                 # seeds 0-4, as committed in bench/results
    python -m bench.streets_ablation --seeds 100 101 102 --out /tmp/trial.json   # for choosing

Every run is a process of its own on one thread. It resumes what is there, a finished one only
evaluates again, and one of other settings is refused, so the command may be stopped and given
again. Settings are chosen on seeds 100-102; 0-4 are only reported.
"""

import json
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from bench.layouts import ROOT, call
from bench.machine import machine
from bench.program import make_parser
from pipa_fast.program import cores

ARMS = {
    "source": "streets_source",
    "self-train": "streets_selftrain",
    "+ pixel": "streets_pipa_pixel",
    "+ patch": "streets_pipa_patch",
    "+ both": "streets_pipa",
    "oracle": "streets_oracle",
}
RESULTS = ROOT / "bench" / "results" / "streets_ablation.json"
PLOT = ROOT / "docs" / "streets_ablation.png"


def run_one(recipe: str, seed: int, runs: Path, overrides: list[str]) -> dict[str, Any]:
    """Train one recipe on one seed, or go on with it, and return its results."""
    folder = runs / f"{recipe}-{seed}"
    words = ["pipa_fast.train", "--config", recipe, "--seed", str(seed)]
    words += ["--run.dir", str(runs), "--run.name", folder.name]
    words += ["--run.resume", "auto", "--run.report", "false", *overrides]
    folder.mkdir(parents=True, exist_ok=True)
    call(words, folder / "log.txt")
    results = json.loads((folder / "results.json").read_text())
    print(f"{recipe:20s} seed {seed:3d}  mIoU {results['miou']:.2f}", flush=True)
    return results


def summarise(runs: dict[str, list[dict[str, Any]]], overrides: list[str]) -> dict[str, Any]:
    """Return mean, standard deviation and every seed's score of each arm [percent]."""
    arms = {}
    for arm, results in runs.items():
        miou = [r["miou"] for r in results]
        names = results[0]["iou"]
        arms[arm] = {
            "recipe": ARMS[arm],
            "miou_mean": statistics.mean(miou),
            "miou_std": statistics.stdev(miou) if len(miou) > 1 else 0.0,
            "miou": {str(r["seed"]): r["miou"] for r in results},
            "iou_mean": {n: statistics.mean(r["iou"][n] for r in results) for n in names},
            "iterations": results[0]["iteration"],
        }
    return {
        "command": "python -m bench.streets_ablation",
        "overrides": overrides,
        "machine": machine(torch.device("cpu")),
        "arms": arms,
    }


def plot(summary: dict[str, Any], path: Path) -> None:
    """Draw every arm's seeds, mean and standard deviation."""
    figure = Figure(figsize=(7, 2.8), dpi=150)
    axes = figure.subplots()
    for row, (_, arm) in enumerate(summary["arms"].items()):
        scores = list(arm["miou"].values())
        axes.errorbar(
            arm["miou_mean"], row, xerr=arm["miou_std"], fmt="o", color="#1f5fa8", capsize=4
        )
        axes.plot(scores, [row + 0.22] * len(scores), "|", color="#777777", markersize=8)
        label = f"{arm['miou_mean']:.1f} ± {arm['miou_std']:.1f}"
        axes.annotate(label, (max(scores), row), xytext=(10, -3), textcoords="offset points")
    axes.set_yticks(range(len(summary["arms"])), list(summary["arms"]))
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("mIoU on the real streets' validation scenes [%]; ticks are seeds")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    """Run what is missing and write the summary."""
    parser = make_parser("bench.streets_ablation", __doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--jobs", type=int, default=cores(), help="runs at a time")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "ablation")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--plot", type=Path, default=None, help="picture; docs/ for the default out"
    )
    options, overrides = parser.parse_known_args()
    overrides = [word for word in overrides if word != "--"]
    jobs = [(arm, seed) for seed in options.seeds for arm in options.arms]
    with ThreadPoolExecutor(options.jobs) as pool:
        args = [(ARMS[arm], seed, options.runs.resolve(), overrides) for arm, seed in jobs]
        results = list(pool.map(lambda a: run_one(*a), args))
    runs = {
        arm: [r for (a, _), r in zip(jobs, results, strict=True) if a == arm]
        for arm in options.arms
    }
    summary = summarise(runs, overrides)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(summary, indent=2) + "\n")
    target = options.plot or (PLOT if options.out == RESULTS else None)
    if target:
        plot(summary, target)
    for arm, entry in summary["arms"].items():
        print(f"{arm:12s} {entry['miou_mean']:6.2f} ± {entry['miou_std']:.2f}")
    print(f"-> {options.out}")


if __name__ == "__main__":
    main()
