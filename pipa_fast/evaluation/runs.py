# SPDX-License-Identifier: Apache-2.0
"""What a run's folder says of itself: settings, results and history."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipa_fast.checks import require
from pipa_fast.data.labels import CLASSES
from pipa_fast.evaluation.inference import SlidingWindow
from pipa_fast.evaluation.protocol import in_words, protocol_of

RESULTS = "results.json"

# Settings that change no step's result but by rounding, or, as micro_batch and compile, by which
# numbers dropout and drop-path draw: where things are, and how the machine does its work.
HARMLESS = (
    "run.",
    "device",
    "data.source_root",
    "data.target_root",
    "data.num_workers",
    "data.micro_batch",
    "model.checkpoint_activations",
    "model.compile",
    "evaluation.batch_size",
    "evaluation.window_batch",
)


@dataclass(kw_only=True, slots=True, frozen=True)
class Run:
    """A run's folder as read from disk. Scores are percent."""

    path: Path
    recipe: str
    iteration: int | None  # None: scored by evaluate, not at the end of its training
    seed: int
    miou: float
    iou: dict[str, float]
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    images_per_step: int | None = None
    """Of all ranks; None where the folder does not tell."""
    scored: str = RESULTS
    """The file that holds the scores."""
    protocol: dict[str, Any] = field(default_factory=dict)
    """Dataset, split and classes of the scores, and `protocol_of` how images were seen; empty where
    the folder does not tell."""

    @property
    def images(self) -> str:
        """What was scored: dataset and split."""
        return " ".join(str(self.protocol.get(name, "")) for name in ("dataset", "split")).strip()

    def how(self) -> str:
        """Return in words where the scores are from and how they were taken."""
        if not self.protocol:
            return self.scored
        classes = self.protocol.get("classes", "dataset")
        named = "all classes" if classes == "dataset" else f"{classes} classes"
        return f"{self.scored}, {self.images}, {named}, {in_words(self.protocol)}"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of classes by train id."""
        return tuple(self.config.get("data", {}).get("classes") or CLASSES)

    def losses(self) -> dict[str, tuple[list[float], list[float]]]:
        """Return iterations and values of every loss term."""
        terms: dict[str, tuple[list[float], list[float]]] = {}
        for record in self.history:
            for name, value in (record.get("loss") or {}).items():
                xs, ys = terms.setdefault(name, ([], []))
                xs.append(record["iteration"])
                ys.append(math.nan if value is None else value)
        return terms

    def scores(self) -> tuple[list[float], list[float]]:
        """Return iterations and mIoU [percent] of every evaluation."""
        records = [r for r in self.history if r.get("kind") == "eval"]
        miou = [math.nan if r["miou"] is None else r["miou"] for r in records]
        return [r["iteration"] for r in records], miou


def classes_of(runs: Iterable[Run]) -> list[str]:
    """Return the classes that some run was scored on, in the order of train ids."""
    runs = list(runs)
    known = dict.fromkeys(name for run in runs for name in run.names)
    present = {name for run in runs for name in run.iou}
    return [c for c in known if c in present] + sorted(present - known.keys())


def read_run(path: Path | str) -> Run:
    """Read a run's folder; settings and history may be absent, results may not.

    Raises:
        ValueError: the folder holds no results.json, or a file of it cannot be read.
    """
    path = Path(path)
    results = _read(path / RESULTS, _record)
    if results is None:
        raise ValueError(
            f"run must be the folder of a finished run, with results.json; got {str(path)!r}"
        )
    return _run(path, RESULTS, results, {"iteration"})


def _run(path: Path, scored: str, results: dict[str, Any], needed: set[str]) -> Run:
    """Return the run of a folder whose file `scored` holds `results`."""
    missing = {"recipe", "seed", "miou", "iou", *needed} - results.keys()
    if missing:
        raise ValueError(f"{path / scored} lacks {', '.join(sorted(missing))}")
    config = _read(path / "config.yaml", _settings) or {}
    return Run(
        path=path,
        **{k: results[k] for k in ("recipe", "seed", "miou", "iou")},
        iteration=results.get("iteration"),
        images_per_step=results.get("images_per_step"),
        config=config,
        history=_read(path / "history.jsonl", _lines) or [],
        scored=scored,
        protocol=_own_protocol(config) if scored == RESULTS else results,
    )


def _own_protocol(config: dict[str, Any]) -> dict[str, Any]:
    """Return how training's evaluations took their scores; empty for a run without settings."""
    own, target = config.get("evaluation"), config.get("data", {}).get("target")
    if not isinstance(own, dict) or target is None:
        return {}
    crop, stride = own.get("crop"), own.get("stride")
    window = None if crop is None else SlidingWindow.of(tuple(crop), stride and tuple(stride))
    view = {"image_size": own.get("size"), "window": window, "flip": own.get("flip", False)}
    classes = own.get("classes", "dataset")
    seen = protocol_of(view, config.get("precision", "auto"))
    return {"dataset": target, "split": "val", "classes": classes, **seen}


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read the folders of runs that are to stand side by side.

    A run without results.json, as `convert` leaves it, has the scores that `evaluate` wrote of it:
    the newest that were taken as those of the first run with results.json, or else the newest on
    the same images. Where none has results.json, the first folder's newest scores are that measure.

    Raises:
        ValueError: a folder without scores, with none on the same images, or with a file that
            cannot be read.
    """
    found = [_scores(path) for path in paths]
    first = next((runs[0] for runs in found if runs[0].scored == RESULTS), found[0][0])
    return [_nearest(runs, first) for runs in found]


def _scores(path: Path) -> list[Run]:
    """Return a folder's run by its results, or by each of its evaluations, the newest first."""
    if (path / RESULTS).is_file():
        return [read_run(path)]
    files = sorted(path.glob("evaluation_*.json"), key=lambda p: p.stat().st_mtime, reverse=True)
    records = [(file.name, _read(file, _record)) for file in files]
    # scores of other weights are not this folder's
    own = [(name, record) for name, record in records if record.get("checkpoint") is None]
    if not own:
        raise ValueError(
            "run must be the folder of a finished run, with results.json, or of one that evaluate "
            f"scored; got {str(path)!r}"
        )
    return [_run(path, name, record, {"dataset", "split"}) for name, record in own]


def _nearest(runs: Sequence[Run], first: Run) -> Run:
    """Return the first of a folder's scores that were taken most like another run's."""

    def seen(run: Run) -> tuple[object, str]:
        # not the precision: of a trained run it may be its device's, which nothing here knows
        return run.protocol.get("classes"), in_words(run.protocol | {"precision": "any"})

    best = min(runs, key=lambda run: (run.images != first.images, seen(run) != seen(first)))
    if best.scored != RESULTS and first.images and best.images != first.images:
        dataset, split = first.protocol["dataset"], first.protocol["split"]
        raise ValueError(
            f"runs must be scored on the same images; {first.path} is on {first.images}, "
            f"{best.path} on {best.images} alone. evaluate --run {best.path} --dataset {dataset} "
            f"--split {split} scores it there"
        )
    return best


def _record(text: str) -> dict[str, Any]:
    return _mapping(json.loads(text))


def _settings(text: str) -> dict[str, Any]:
    return _mapping(yaml.safe_load(text) or {})


def _lines(text: str) -> list[dict[str, Any]]:
    return [_record(line) for line in text.splitlines() if line.strip()]


def _mapping(value: Any) -> dict[str, Any]:
    require(isinstance(value, dict), "a record", value, "a mapping")
    return value


def _read(path: Path, parse: Any) -> Any:
    """Return the parsed file, None where there is none."""
    if not path.is_file():
        return None
    try:
        return parse(path.read_text())
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, dict) and value
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat
