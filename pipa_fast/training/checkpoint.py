# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: written whole or not at all, verified before use, loadable without running code."""

import contextlib
import copy
import hashlib
import json
import logging
import os
import pickle
import textwrap
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import safetensors.torch
import torch
import yaml
from safetensors import SafetensorError
from torch import Tensor, nn

from pipa_fast.checks import require
from pipa_fast.data.batch import Batch
from pipa_fast.evaluation.runs import RESULTS, read_run
from pipa_fast.models import SegmentationNetwork, build_network
from pipa_fast.models.published import Branch
from pipa_fast.training.config import Config, read_settings, to_dict

logger = logging.getLogger(__name__)
EXPORTED = "model.safetensors"
SETTINGS = "config.yaml"
STATUS = "status.json"


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write that takes the place of `path` when it is whole, and on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
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


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader finds either the old file or the whole new one."""
    with _replacing(path) as file:
        file.write(data)


def save(
    run_dir: Path,
    state: dict[str, Any],
    iteration: int,
    *,
    keep: int = 2,
    keep_every: int | None = None,
) -> Path:
    """Write `state` as the run's checkpoint of `iteration` and drop all but the newest `keep`.

    Those of multiples of `keep_every` iterations stay too. The manifest beside it, with the file's
    size and SHA-256, is written last: a checkpoint without one was interrupted.
    """
    folder = run_dir / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    path = path_of(run_dir, iteration)
    with _replacing(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # of torch's writer, which hides what the system said
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        path.with_suffix(".json").unlink(missing_ok=True)
    manifest = {"iteration": iteration, "bytes": path.stat().st_size, "sha256": _sha256(path)}
    write_atomically(path.with_suffix(".json"), json.dumps(manifest).encode())
    for old in found(run_dir)[keep:]:
        step = old.stem.removeprefix("step-")
        if keep_every is not None and step.isdigit() and int(step) % keep_every == 0:
            continue
        old.with_suffix(".json").unlink(missing_ok=True)
        old.unlink(missing_ok=True)
    return path


def path_of(run_dir: Path, iteration: int) -> Path:
    """Return where the run's checkpoint of `iteration` is, or would be."""
    return run_dir / "checkpoints" / f"step-{iteration:07d}.pt"


class Writer:
    """Writes checkpoints in a thread while training goes on, one at a time, in order.

    An error of the thread is raised by the next call: at the latest by `wait`, which a run calls
    before it ends.
    """

    def __init__(self) -> None:
        self.begun: Future[None] | None = None

    def save(
        self,
        run_dir: Path,
        state: dict[str, Any],
        iteration: int,
        *,
        keep: int,
        keep_every: int | None = None,
    ) -> None:
        """Copy the state to the host and begin to write it, once the one before is written.

        The arguments are those of `checkpoint.save`.

        Raises:
            OSError: the one before could not be written.
        """
        self.wait()
        pool = ThreadPoolExecutor(1, "checkpoint")
        self.begun = pool.submit(_write, run_dir, _copied(state), iteration, keep, keep_every)
        pool.shutdown(wait=False)  # the thread ends with what it has begun

    def wait(self) -> None:
        """Wait until what was begun is written.

        Raises:
            OSError: it could not be; the file and what to do are named.
        """
        begun, self.begun = self.begun, None
        if begun is not None:
            begun.result()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finish what was begun; where the run ends by another error, this one is logged."""
        try:
            self.wait()
        except OSError as error:
            if kind is None:
                raise
            logger.error("%s", error)


def _write(
    run_dir: Path, state: dict[str, Any], iteration: int, keep: int, keep_every: int | None
) -> None:
    try:
        save(run_dir, state, iteration, keep=keep, keep_every=keep_every)
    except (OSError, RuntimeError) as error:  # torch's writer raises the second for the first
        raise OSError(
            f"the checkpoint of step {iteration} could not be written to {run_dir}: {error}; those "
            "before it are as they were. Make room there, or give another --run.dir, and resume"
        ) from error


def _copied(value: Any) -> Any:
    """Return a copy of a state on the host, of which nothing is the next step's to change."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        made = copy.copy(value)  # with what a state dict carries beside its entries
        made.update((key, _copied(entry)) for key, entry in value.items())
        return made
    if isinstance(value, list | tuple):
        return type(value)(_copied(entry) for entry in value)
    return value


def found(run_dir: Path) -> list[Path]:
    """Return the run's finished checkpoints, newest first."""
    paths = (run_dir / "checkpoints").glob("step-*.pt")
    return sorted((p for p in paths if p.with_suffix(".json").is_file()), reverse=True)


def sweep(run_dir: Path) -> None:
    """Remove what killed processes have half written. Only the run's own job may do so."""
    for pattern in (".*.tmp", "checkpoints/.*.tmp"):
        for path in run_dir.glob(pattern):
            path.unlink(missing_ok=True)


def holds_run(run_dir: Path) -> bool:
    """Return whether a folder holds what a run has learnt: weights, results or checkpoints."""
    left = [run_dir / EXPORTED, run_dir / RESULTS, *run_dir.glob("checkpoints/step-*.pt")]
    return any(path.is_file() for path in left)


def set_aside(run_dir: Path) -> Path | None:
    """Rename a folder that holds a run, and return its new name; None where there was no run.

    The first free of NAME.1, NAME.2, … is taken. Left in place, the old run's later checkpoints
    would be what the new one resumes from, and removing them could cost weeks.
    """
    if not holds_run(run_dir):
        return None
    number = 1
    while (kept := run_dir.with_name(f"{run_dir.name}.{number}")).exists():
        number += 1
    return run_dir.rename(kept)


def load(path: Path) -> dict[str, Any]:
    """Return a checkpoint's state after checking its size and SHA-256.

    Raises:
        ValueError: the file is not the one that was written, or holds other than weights.
    """
    manifest_path = path.with_suffix(".json")
    if not manifest_path.is_file():
        raise ValueError(f"checkpoint {path} must have its manifest {manifest_path.name} beside it")
    try:
        manifest = json.loads(manifest_path.read_text())
        written = manifest["bytes"], manifest["sha256"]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{manifest_path} is no checkpoint's manifest: {error!r}") from error
    if (path.stat().st_size, _sha256(path)) != written:
        raise ValueError(f"checkpoint {path} is damaged: its size or SHA-256 is not its manifest's")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"checkpoint {path} cannot be read: {error}") from error


def load_newest(run_dir: Path) -> dict[str, Any] | None:
    """Return the state of the newest sound checkpoint, None where there is none.

    Raises:
        ValueError: there are checkpoints, and all are damaged.
    """
    newest = _newest(run_dir)
    return None if newest is None else newest[1]


def _newest(run_dir: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest sound checkpoint with its state; otherwise as `load_newest`."""
    paths = found(run_dir)
    for path in paths:
        try:
            return path, load(path)
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


def write_settings(run_dir: Path, config: Config, *, note: str = "") -> None:
    """Write `config.yaml`: a run's settings, below the note, of one line, as a comment."""
    text = yaml.safe_dump(to_dict(config), sort_keys=False)
    write_atomically(run_dir / SETTINGS, (f"# {note}\n{text}" if note else text).encode())


def write_status(run_dir: Path, state: str, iteration: int, reason: str = "") -> None:
    """Write `status.json`: "running", "finished", "stopped" or "failed", at which step, and why."""
    status = {"state": state, "iteration": iteration, "reason": reason}
    write_atomically(run_dir / STATUS, (json.dumps(status, indent=2) + "\n").encode())


def write_batch(run_dir: Path, batch: Batch, iteration: int, rank: int) -> Path:
    """Write a rank's batch for study, as `torch.load(path, weights_only=True)` reads it."""
    path = run_dir / f"batch-step{iteration}-rank{rank}.pt"
    tensors = {name: value.cpu() for name, value in batch._asdict().items()}
    torch.save(tensors, path)
    return path


def write_results(run_dir: Path, results: dict[str, Any]) -> None:
    """Write `results.json`: mIoU and IoU per class [percent], recipe, iteration and seed."""
    write_atomically(run_dir / RESULTS, (json.dumps(results, indent=2) + "\n").encode())


class Weights(NamedTuple):
    """A network's weights, and where they are from."""

    path: Path
    branch: Branch | None  # None: the file does not tell
    state: dict[str, Tensor]
    iteration: int | None = None  # None: an exported network's

    @property
    def label(self) -> str:
        """Of a checkpoint, which they are, to be put behind a name."""
        return "" if self.iteration is None else f", {self.branch} at step {self.iteration}"


def find_weights(
    run_dir: Path | str, file: Path | None = None, branch: Branch | None = None
) -> Weights:
    """Return the weights that are asked for: by default a run's last, or its newest checkpoint's.

    That a run has not ended, and which checkpoint is taken, is told by a warning.

    Args:
        run_dir: folder of a run, ended or not, or of a converted or exported network.
        file: weights to take instead, a checkpoint's .pt or a .safetensors.
        branch: "student", which a run is scored by and ends with, or "teacher", which checkpoints
            hold beside it. None is the student, where there are both.

    Raises:
        ValueError: there are none, none of that branch, or they are damaged.
    """
    run_dir = Path(run_dir)
    exported = run_dir / EXPORTED
    if not (run_dir / SETTINGS).is_file():
        raise ValueError(f"run must be a folder with {SETTINGS}; got {str(run_dir)!r}")
    if file is not None:
        fine = file.is_file() and file.suffix in (".safetensors", ".pt")
        expected = "a file of weights, .safetensors or a checkpoint's .pt"
        require(fine, "checkpoint", str(file), expected)
        if file.suffix == ".pt":
            return _of_state(file, load(file), branch)
        expected = "left out with a .safetensors, which holds one network and tells not whose"
        require(branch is None, "branch", branch, expected)
        return Weights(file, None, read_weights(file))
    if not exported.is_file():
        newest = _newest(run_dir)
        if newest is None:
            expected = f"a folder with {EXPORTED}, or with checkpoints"
            raise ValueError(f"run must be {expected}; got {str(run_dir)!r}")
        weights = _of_state(*newest, branch)
        told = run_dir, EXPORTED, weights.path, weights.label
        logger.warning("%s has no %s yet: taking %s%s", *told)
        return weights
    trained = (run_dir / RESULTS).is_file()  # not so of converted and exported networks
    if branch == "teacher" and trained:
        iteration = read_run(run_dir).iteration
        assert iteration is not None  # as its training's own scores are read
        last = path_of(run_dir, iteration)
        expected = f"student, whose weights {EXPORTED} holds: {last}, with the teacher's, is gone"
        require(last.is_file(), "branch", branch, expected)
        return _of_state(last, load(last), branch)
    expected = f"left out: {exported} does not tell whose weights it holds"
    require(branch is None or trained, "branch", branch, expected)
    return Weights(exported, "student" if trained else None, read_weights(exported))


def _of_state(path: Path, state: dict[str, Any], branch: Branch | None) -> Weights:
    if branch != "teacher":
        return Weights(path, "student", state["student"], state["iteration"])
    teacher: dict[str, Tensor] = state["teacher"] or {}
    require(bool(teacher), "branch", branch, f"student: {path} has no teacher")
    weights = {k.removeprefix("network."): v for k, v in teacher.items()}
    return Weights(path, branch, weights, state["iteration"])


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights of an exported file.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged, or no safetensors: {error}") from error


def fit(network: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Give the network the weights read from `path`; projection heads keep their own.

    Raises:
        ValueError: they are not exactly the network's; the file is named.
    """
    heads = {k: v for k, v in network.state_dict().items() if k.startswith("projections.")}
    kept = {k: v for k, v in weights.items() if not k.startswith("projections.")}
    try:
        network.load_state_dict(kept | heads)
    except RuntimeError as error:  # it lists what is missing, too much, or of another shape
        problems = textwrap.shorten(str(error), 400)
        raise ValueError(f"{path} does not fit the settings of its run: {problems}") from error


def load_run(
    run_dir: Path | str, weights: Weights | None = None
) -> tuple[SegmentationNetwork, Config]:
    """Return a run's network in evaluation mode, without projection heads, and its settings.

    Args:
        run_dir: the run's folder.
        weights: from `find_weights`; None takes what that gives by default.

    Raises:
        ValueError: the folder holds no run, a file of it cannot be read, or the weights do not fit
            its settings.
    """
    run_dir = Path(run_dir)
    if weights is None:
        weights = find_weights(run_dir)
    config = read_settings(run_dir / SETTINGS)
    # All weights come from the run: those that training started from may be gone. Compiling is for
    # many steps on the machine that trains; another may have no compiler.
    model = replace(config.model, weights=None, start=None, compile=False)
    network = build_network(model).export()
    fit(network, weights.state, weights.path)
    return network.eval(), config


def before_training(config: Config) -> SegmentationNetwork | None:
    """Return the network that a run's training began with, made again from its settings.

    None where that was a whole network: the folder of `model.start` may be gone by now, or be this
    run's. None, with a warning, where the encoder's weights are gone.
    """
    if config.model.start is not None:
        return None
    torch.manual_seed(config.seed)
    try:
        return build_network(config.model)
    except ValueError as error:
        logger.warning("%s; the network before training is not shown", error)
        return None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
