# SPDX-License-Identifier: Apache-2.0
"""What a run's folder says of itself: settings, results and history."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipa_fast.checks import require
from pipa_fast.data.labels import CLASSES

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
)


@dataclass(kw_only=True, slots=True, frozen=True)
class Run:
    """A run's folder as read from disk. Scores are percent."""

    path: Path
    recipe: str
    iteration: int
    seed: int
    miou: float
    iou: dict[str, float]
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

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
    results = _read(path / "results.json", _record)
    if results is None:
        raise ValueError(
            f"run must be the folder of a finished run, with results.json; got {str(path)!r}"
        )
    missing = {"recipe", "iteration", "seed", "miou", "iou"} - results.keys()
    if missing:
        raise ValueError(f"{path / 'results.json'} lacks {', '.join(sorted(missing))}")
    return Run(
        path=path,
        **{k: results[k] for k in ("recipe", "iteration", "seed", "miou", "iou")},
        config=_read(path / "config.yaml", _settings) or {},
        history=_read(path / "history.jsonl", _lines) or [],
    )


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
