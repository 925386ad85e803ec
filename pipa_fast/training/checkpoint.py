# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: written whole or not at all, verified before use, loadable without running code."""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml

from pipa_fast.models import SegmentationNetwork, build_network
from pipa_fast.training.config import Config, from_dict

logger = logging.getLogger(__name__)
EXPORTED = "model.safetensors"


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader finds either the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut
    finally:
        os.close(folder)


def save(run_dir: Path, state: dict[str, Any], iteration: int, *, keep: int = 2) -> Path:
    """Write `state` as the run's checkpoint of `iteration` and drop all but the newest `keep`.

    The manifest beside it, with the file's size and SHA-256, is written last: a checkpoint without
    one was interrupted.
    """
    folder = run_dir / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{iteration:07d}.pt"
    temporary = folder / f".{path.name}.{os.getpid()}.tmp"
    try:
        torch.save(state, temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        manifest = {
            "iteration": iteration,
            "bytes": temporary.stat().st_size,
            "sha256": _sha256(temporary),
        }
        path.with_suffix(".json").unlink(missing_ok=True)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    write_atomically(path.with_suffix(".json"), json.dumps(manifest).encode())
    for old in found(run_dir)[keep:]:
        old.with_suffix(".json").unlink(missing_ok=True)
        old.unlink(missing_ok=True)
    return path


def found(run_dir: Path) -> list[Path]:
    """Return the run's finished checkpoints, newest first."""
    paths = (run_dir / "checkpoints").glob("step-*.pt")
    return sorted((p for p in paths if p.with_suffix(".json").is_file()), reverse=True)


def set_aside(run_dir: Path) -> Path | None:
    """Rename a folder that holds a run, and return its new name; None where there was no run.

    The first free of NAME.1, NAME.2, … is taken. Left in place, the old run's later checkpoints
    would be what the new one resumes from, and removing them could cost weeks.
    """
    left = [run_dir / EXPORTED, run_dir / "results.json", *run_dir.glob("checkpoints/step-*.pt")]
    if not any(path.is_file() for path in left):
        return None
    number = 1
    while (kept := run_dir.with_name(f"{run_dir.name}.{number}")).exists():
        number += 1
    return run_dir.rename(kept)


def load(path: Path) -> dict[str, Any]:
    """Return a checkpoint's state after checking its size and SHA-256.

    Raises:
        ValueError: the file is not the one that was written.
    """
    manifest = json.loads(path.with_suffix(".json").read_text())
    if path.stat().st_size != manifest["bytes"] or _sha256(path) != manifest["sha256"]:
        raise ValueError(f"checkpoint {path} is damaged: its size or SHA-256 is not its manifest's")
    return torch.load(path, map_location="cpu", weights_only=True)


def load_newest(run_dir: Path) -> dict[str, Any] | None:
    """Return the state of the newest sound checkpoint, None where there is none.

    Raises:
        ValueError: there are checkpoints, and all are damaged.
    """
    paths = found(run_dir)
    for path in paths:
        try:
            return load(path)
        except (ValueError, OSError) as error:
            logger.warning("%s; trying the one before", error)
    if paths:
        raise ValueError(f"no checkpoint of {run_dir} is sound; delete them to start anew")
    return None


def export(run_dir: Path, network: SegmentationNetwork) -> Path:
    """Write the network without its projection heads, for evaluation and exchange."""
    path = run_dir / EXPORTED
    state = {k: v.detach().cpu().contiguous() for k, v in network.export().state_dict().items()}
    write_atomically(path, safetensors.torch.save(state))
    return path


def write_results(run_dir: Path, results: dict[str, Any]) -> None:
    """Write `results.json`: mIoU and IoU per class [percent], recipe, iteration and seed."""
    write_atomically(run_dir / "results.json", (json.dumps(results, indent=2) + "\n").encode())


def load_run(run_dir: Path | str) -> tuple[SegmentationNetwork, Config]:
    """Return a run's exported network in evaluation mode, and the run's settings.

    Raises:
        ValueError: the folder holds no finished run, or its weights do not fit its settings.
    """
    run_dir = Path(run_dir)
    for name in ("config.yaml", EXPORTED):
        if not (run_dir / name).is_file():
            raise ValueError(f"run must be a folder with {name}; got {str(run_dir)!r}")
    config = from_dict(yaml.safe_load((run_dir / "config.yaml").read_text()))
    network = build_network(config.model).export()
    state = safetensors.torch.load_file(run_dir / EXPORTED)
    missing, unexpected = network.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise ValueError(
            f"{run_dir / EXPORTED} does not fit config.yaml: missing {missing}, "
            f"unexpected {unexpected}"
        )
    return network.eval(), config


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
