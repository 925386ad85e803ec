# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that DAFormer, HRDA, MIC, PiPa and SegFormer published, into our networks.

    report = load_published("iter_40000_relevant.pth", network)
    print(report)

Such a file is mmcv's: a dictionary of `meta`, `state_dict` and perhaps `optimizer`. Students are
under `model.`, teachers under `ema_model.`; a plain segmentor's file has neither prefix. A folder
is one that transformers saved of a SegformerForSemanticSegmentation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipa_fast.checks import require
from pipa_fast.models.published_names import bare_state, hub_name, read_file, segmentor_names

Branch = Literal["student", "teacher"]
_PREFIXES: dict[Branch, str] = {"student": "model.", "teacher": "ema_model."}
# Networks and layers for training alone: teachers and students, the frozen ImageNet network, and
# PiPa's heads, which its inference does not use either.
_TRAINING = ("model.", "ema_model.", "imnet_model.", "mic.", "project.", "classifier.")
_UNUSED_PARTS = ("cls_head.", "proj_head.", "auxiliary_head.")
_PROBLEMS = {
    "unmatched": "of the file, which the network has no place for",
    "missing": "of the network, which the file lacks",
    "mismatched": "of another shape",
}


@dataclass(kw_only=True)
class LoadReport:
    """What became of each name, of the file's and of the network's."""

    loaded: int
    """Parameters and buffers of the network that the file gave."""
    ignored: tuple[str, ...]
    """The file's names that serve training alone, or the other branch."""
    unmatched: tuple[str, ...]
    """The file's names that mean nothing to this network."""
    missing: tuple[str, ...]
    """The network's names that the file lacks; projection heads are not expected there."""
    mismatched: tuple[str, ...]
    """Names of the network, with both shapes, for which the file has another shape."""

    @property
    def complete(self) -> bool:
        """Whether the network is wholly the file's, and nothing of the file was left over."""
        return not (self.unmatched or self.missing or self.mismatched)

    def __str__(self) -> str:
        lines = [self._counts()]
        for name in _PROBLEMS:
            found = getattr(self, name)
            if found:
                more = ", …" if len(found) > 3 else ""
                lines.append(f"{len(found)} {name}: {', '.join(found[:3])}{more}")
        return "; ".join(lines)

    def in_full(self) -> str:
        """Return the report with every name that does not fit on a line of its own."""
        lines = [self._counts()]
        for name, meaning in _PROBLEMS.items():
            found = getattr(self, name)
            if found:
                lines += [f"{len(found)} {name}, {meaning}:", *(f"  {each}" for each in found)]
        return "\n".join(lines)

    def _counts(self) -> str:
        return f"{self.loaded} loaded, {len(self.ignored)} for training alone left out"


def load_published(
    path: Path | str,
    network: nn.Module,
    *,
    branch: Branch = "student",
    allow_partial: bool = False,
) -> LoadReport:
    """Give a network the weights of a published checkpoint.

    Args:
        path: the .pth file, or the folder of a SegFormer that transformers saved.
        network: of an `encoder`, a `head` and, for HRDA, an `attention`, built with the encoder and
            head of the file. It is left as it was where an error is raised.
        branch: "student", which the lineage evaluates, or "teacher".
        allow_partial: take what fits, where otherwise anything left over is an error.

    Raises:
        ValueError: the file cannot be read safely, has no such branch, or does not fit.
    """
    require(branch in _PREFIXES, "branch", branch, "student or teacher")
    path = Path(path)
    require(path.exists(), "path", str(path), "a published checkpoint's file, or its folder")
    if path.is_dir():
        require(branch == "student", "branch", branch, f"student, as {path.name} has no teacher")
        ours, ignored, unmatched = _read_folder(path)
    else:
        ours, ignored, unmatched = _rename(bare_state(read_file(path)), branch, path)
    expected = network.state_dict()
    fitting, mismatched = {}, []
    for name, (key, value) in ours.items():
        if name not in expected:
            unmatched.append(key)
        elif expected[name].shape != value.shape:
            sizes = f"{tuple(value.shape)} in the file, {tuple(expected[name].shape)} here"
            mismatched.append(f"{name} ({sizes})")
        else:
            fitting[name] = value
    report = LoadReport(
        loaded=len(fitting),
        ignored=tuple(ignored),
        unmatched=tuple(dict.fromkeys(unmatched)),
        missing=tuple(name for name in expected if name not in ours and not _optional(name)),
        mismatched=tuple(mismatched),
    )
    if not report.complete and not allow_partial:
        raise ValueError(f"{path} does not fit the network: {report}")
    network.load_state_dict(fitting, strict=False)
    return report


def _optional(name: str) -> bool:
    """Return whether a published file need not have a parameter or buffer of ours."""
    return name.startswith("projections.") or name.endswith(".num_batches_tracked")


def _read_folder(path: Path) -> tuple[dict[str, tuple[str, Tensor]], list[str], list[str]]:
    """Return what `_rename` does, of a SegFormer that transformers saved."""
    from transformers import SegformerForSemanticSegmentation  # takes seconds; seldom needed

    try:
        loaded: Any = SegformerForSemanticSegmentation.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is no folder of a SegFormer: {error}") from error
    model, report = loaded
    # What the file lacks, transformers draws at random: it is missing here too.
    lacking = {*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])}
    state = {key: value for key, value in model.state_dict().items() if key not in lacking}
    ours = {hub_name(key): (key, value) for key, value in state.items()}
    return ours, [], sorted(report["unexpected_keys"])


def _rename(
    state: Mapping[str, Tensor], branch: Branch, path: Path
) -> tuple[dict[str, tuple[str, Tensor]], list[str], list[str]]:
    """Return a branch's tensors by our names, each with its own, the ignored and the unknown."""
    plain = not any(key.startswith(tuple(_PREFIXES.values())) for key in state)
    prefix = "" if plain and branch == "student" else _PREFIXES[branch]
    present = any(key.startswith(prefix) for key in state)
    require(present, "branch", branch, f"one that {path.name} holds")
    ours: dict[str, tuple[str, Tensor]] = {}
    ignored, unknown = [], []
    # SegFormer's head inherits a classifier that it never calls.
    linear = any(key.startswith(f"{prefix}decode_head.linear_pred.") for key in state)
    unused = (*_UNUSED_PARTS, "decode_head.conv_seg.") if linear else _UNUSED_PARTS
    # SegFormer's own head joins its maps deepest first, as ours does; DAFormer's copy of it, which
    # counts them from 0, finest first.
    finest_first = f"{prefix}decode_head.linear_c.0.proj.weight" in state
    for key, value in state.items():
        bare = key.removeprefix(prefix)
        if finest_first and bare == "decode_head.linear_fuse.conv.weight":
            value = torch.cat(value.chunk(4, dim=1)[::-1], dim=1)
        if not key.startswith(prefix):
            (ignored if key.startswith(_TRAINING) else unknown).append(key)
        elif bare.startswith(unused):
            ignored.append(key)
        elif names := segmentor_names(bare):
            parts = value.chunk(len(names)) if len(names) > 1 else (value,)
            ours.update((n, (key, part)) for n, part in zip(names, parts, strict=True))
        else:
            unknown.append(key)
    return ours, ignored, unknown
