# SPDX-License-Identifier: Apache-2.0
"""Networks as folders that others can load: weights, settings and a card, as the hub lays them out.

FOLDER/model.safetensors  FOLDER/config.yaml  FOLDER/README.md
"""

import shutil
import string
from dataclasses import replace
from functools import partial
from importlib import resources
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError

from pipa_fast import __version__
from pipa_fast.checks import first_line, require
from pipa_fast.data.files import write_whole
from pipa_fast.evaluation.runs import Run, classes_of, read_run
from pipa_fast.models import SegmentationNetwork, size_multiple
from pipa_fast.training.checkpoint import (
    EXPORTED,
    SETTINGS,
    Weights,
    export,
    find_weights,
    load_run,
    write_settings,
)
from pipa_fast.training.config import Config, RunConfig

CARD = "README.md"


def from_pretrained(name: str | Path, *, revision: str | None = None) -> SegmentationNetwork:
    """Return a network in evaluation mode from a folder, or from a repository of the hub.

    Args:
        name: a folder with model.safetensors and config.yaml, as `save_pretrained` and every
            finished run leave it; else the hub's OWNER/NAME.
        revision: branch, tag or commit of the repository.

    Raises:
        ValueError: there is neither, files are missing or damaged, or do not fit each other.
    """
    folder = Path(name)
    if not folder.is_dir():
        folder = _download(str(name), revision)
    else:
        require(revision is None, "revision", revision, "None for a folder")
    return load_run(folder)[0]


def save_pretrained(
    run: str | Path,
    folder: str | Path,
    *,
    name: str | None = None,
    weights: Weights | None = None,
) -> Path:
    """Write a run's network as a folder for others, with a card to be completed.

    Args:
        run: the run's folder.
        folder: where to write; files of the same names are replaced.
        name: of the network in the card, as the hub's OWNER/NAME; the folder's by default.
        weights: from `training.checkpoint.find_weights`; None takes the run's last. The card has
            scores of those alone.

    Raises:
        ValueError: the run's folder holds no network, or is the one to write: its settings hold
            this machine's places.
        OSError: a file cannot be written.
    """
    run, folder = Path(run), Path(folder)
    other = run.resolve() != folder.resolve()
    require(other, "folder", str(folder), "another than the run's own")
    if weights is None:
        weights = find_weights(run)
    network, config = load_run(run, weights)
    last = weights.path == run / EXPORTED
    scores = read_run(run) if last else None
    text = card(network, config, scores, name or folder.resolve().name, weights.iteration)
    folder.mkdir(parents=True, exist_ok=True)
    note = f"weights{weights.label}" if weights.label else ""
    if last:
        write_whole(folder / EXPORTED, partial(shutil.copyfile, weights.path))
    else:
        export(folder, network)
    write_settings(folder, _without_places(config), note=note)
    (folder / CARD).write_text(text, encoding="utf-8")
    return folder


def push(folder: str | Path, name: str, *, private: bool = True) -> str:
    """Upload a folder that `save_pretrained` wrote, and return the commit's address.

    Args:
        folder: of model.safetensors, config.yaml and README.md; nothing else goes up.
        name: OWNER/NAME on the hub; made if it is not there.
        private: whether a new repository is.

    Raises:
        ValueError: a file is missing, or the hub refuses.
    """
    folder = Path(folder)
    files = [EXPORTED, SETTINGS, CARD]
    missing = [file for file in files if not (folder / file).is_file()]
    require(not missing, "folder", str(folder), f"one with {', '.join(files)}")
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        made = api.upload_folder(
            repo_id=name,
            folder_path=str(folder),
            allow_patterns=files,
            commit_message=f"Weights, settings and card, by pipa_fast {__version__}",
        )
    except (HTTPError, HFValidationError, OSError) as error:
        raise ValueError(
            f"{name!r} cannot be pushed: {first_line(error)}. `hf auth login` signs you in"
        ) from error
    return made.commit_url


def _without_places(config: Config) -> Config:
    """Return the settings without this machine's folders, which are nobody else's business."""
    data, weights = config.data, config.model.weights
    roots = {
        f"{side}_root": f"data/{getattr(data, side)}"
        for side in ("source", "target")
        if getattr(data, f"{side}_root") is not None
    }
    return replace(
        config,
        data=replace(data, **roots),
        model=replace(config.model, weights=Path(weights).name if weights else None, start=None),
        run=RunConfig(),
    )


def _download(name: str, revision: str | None) -> Path:
    expected = f"a folder with {EXPORTED} and {SETTINGS}, or OWNER/NAME on the hub"
    require(name.count("/") == 1 and not name.startswith("."), "name", name, expected)
    try:
        files = [EXPORTED, SETTINGS]
        found = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=files)
    except (HTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"name must be {expected}; got {name!r}, and the hub says: {first_line(error)}"
        ) from error
    return Path(found)


def card(
    network: SegmentationNetwork,
    config: Config,
    run: Run | None,
    name: str,
    iteration: int | None = None,
) -> str:
    """Return the model card, filled in as far as the run's folder tells.

    `run` is None for weights that it does not score, whose `iteration` is given where it is known.
    """
    template = resources.files("pipa_fast").joinpath("model_card.md").read_text(encoding="utf-8")
    score, scores = "not measured", ["| not measured | |"]
    if run is not None:
        iteration, score = run.iteration, f"{run.miou:.1f} % over {len(run.iou)} classes"
        scores = [f"| {c} | {run.iou[c]:.1f} |" for c in classes_of([run])]
    return string.Template(template).substitute(
        name=name,
        version=__version__,
        recipe=config.recipe,
        source=config.data.source,
        target=config.data.target,
        encoder=config.model.encoder,
        head=config.model.head,
        parameters=f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f} M",
        weights=f"`{config.model.weights}`" if config.model.weights else "random",
        iterations="an unknown number of" if iteration is None else f"{iteration:,}",
        batch=config.data.batch_size,
        seed=config.seed,
        score=score,
        multiple=size_multiple(network),
        scores="\n".join(scores),
    )
