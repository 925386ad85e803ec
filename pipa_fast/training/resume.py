# SPDX-License-Identifier: Apache-2.0
"""What a run must have in common with the checkpoint it goes on from, and what may be another."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from pipa_fast.data.datasets import Dataset
from pipa_fast.data.folder import FolderDataset
from pipa_fast.data.loader import TrainingSet
from pipa_fast.evaluation.runs import HARMLESS, flatten
from pipa_fast.models import SegmentationNetwork
from pipa_fast.training.config import Config, to_dict

FIRST = ("model.weights", "model.start")
# Besides what changes no score: what the checkpoint brings, and what no step reads.
MAY_CHANGE = (*HARMLESS, *FIRST, "evaluation.")


def inputs_of(
    config: Config, training_set: TrainingSet, validation: Dataset, network: SegmentationNetwork
) -> dict[str, str | None]:
    """Return what a run reads beside its settings, in words that are equal where it is the same.

    Random choices are numbers of images in the order of their names (`data.random`): with one file
    more or less, or another name, each would be of another image.

    Args:
        network: the student before its first step.
    """
    rare, source = training_set.rare, training_set.source
    counts = None
    if rare is not None and isinstance(source, FolderDataset):
        counts = _digest(rare.pixels, *rare.images)
    given = config.model.weights is not None or config.model.start is not None
    encoder = network.encoder.state_dict().values() if given else ()
    return {
        "source": _images(source),
        "class counts": counts,
        "target": _images(training_set.target),
        "validation": _images(validation),
        "first encoder": _digest(*(tensor.cpu() for tensor in encoder)) if given else None,
    }


def _images(dataset: Dataset) -> str:
    """Return how many images there are and, of files, a digest of their names."""
    count = f"{len(dataset)} images"
    if not isinstance(dataset, FolderDataset):
        return count
    names = "\n".join(p.image.relative_to(dataset.root).as_posix() for p in dataset.pairs)
    return f"{count}, names {hashlib.sha256(names.encode()).hexdigest()[:12]}"


def _digest(*arrays: Any) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(torch.as_tensor(array).contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:12]


def check(
    config: Config, state: Mapping[str, Any], *, ranks: int, inputs: Mapping[str, str | None]
) -> list[str]:
    """Return lines on how a run differs from the checkpoint that it goes on from.

    Args:
        state: the checkpoint's.
        ranks: of the run that goes on.
        inputs: from `inputs_of`.

    Raises:
        ValueError: it is of other settings, images or first weights that the next step depends on;
            they are named.
    """
    changed, known = _changed(config, state, ranks), state.get("inputs")
    distance = config.adaptation.features.weight > 0
    refused = [key for key in changed if not key.startswith(MAY_CHANGE)]
    if known is None and distance:  # nothing but their names tells whether they are the same
        refused += [key for key in FIRST if key in changed]
    if refused:
        differences = "; ".join(f"{key}: {changed[key]}" for key in sorted(refused))
        raise ValueError(
            f"{config.run_dir} holds a run of other settings ({differences}); give the same, "
            "another --run.name, or --run.resume never. data.batch_size is of all ranks here"
        )
    told = [f"{key}: {text}" for key, text in changed.items() if not key.startswith("run.")]
    lines = [f"goes on with other settings ({'; '.join(told)})"] if told else []
    if known is None:
        if any(key.endswith("_root") for key in changed):
            lines.append(
                "the checkpoint is of an earlier version, which kept no names of images: whether "
                "these are the same is not checked"
            )
        return lines
    differ = {k: f"{known.get(k)}, now {v}" for k, v in inputs.items() if known.get(k) != v}
    first = differ.pop("first encoder", None)
    if first is not None and distance:
        raise ValueError(
            f"{config.run_dir} holds a run whose adaptation.features keeps near the encoder that "
            "training began with: model.weights or model.start must bring that again; got another "
            f"(SHA-256 {first})"
        )
    return lines + _images_differ(config, differ)


def keep_first(config: Config, state: Mapping[str, Any], inputs: dict[str, str | None]) -> None:
    """Keep on record what training began with, where a run goes on with something else instead.

    Reports and model cards name it; nothing else reads it once there is a checkpoint. Where it is
    the same under another name, the new name stays: the old place may be gone.
    """
    model, known = state["config"]["model"], state.get("inputs")
    began = model["weights"], model.get("start")
    if known is None and began == (config.model.weights, config.model.start):
        return
    first = None if known is None else known.get("first encoder")
    if first is None or first != inputs["first encoder"]:
        config.model.weights, config.model.start = began
        inputs["first encoder"] = first


def _changed(config: Config, state: Mapping[str, Any], ranks: int) -> dict[str, str]:
    """Return what the checkpoint had and the run has of each setting that differs."""
    new, old = (flatten(to_dict(c)) for c in (config, Config(recipe=config.recipe)))
    old |= flatten(state["config"])  # of a version that may have had fewer settings
    old["data.batch_size"] *= state.get("ranks", ranks)  # not in those of 0.1
    new["data.batch_size"] *= ranks
    return {
        key: f"{old.get(key)!r}, now {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }


def _images_differ(config: Config, differ: dict[str, str]) -> list[str]:
    """Return a line on other images; other ones to train on must have been allowed."""
    scored = differ.pop("validation", None)
    lines = [] if scored is None else [f"scores are of other validation images ({scored})"]
    if differ:
        what = "; ".join(f"{key}: {text}" for key, text in differ.items())
        if not config.run.other_images:
            raise ValueError(
                f"{config.run_dir} holds a run of other images ({what}); give data.source_root and "
                "data.target_root with the same files, or --run.other_images true to go on with "
                "these"
            )
        lines.append(f"goes on with other images ({what})")
    return lines
