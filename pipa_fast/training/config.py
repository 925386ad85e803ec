# SPDX-License-Identifier: Apache-2.0
"""A run's settings: a YAML recipe and command-line overrides, typed and checked before any work."""

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from pipa_fast.checks import did_you_mean, is_below, require
from pipa_fast.data.augmentation import STRONG
from pipa_fast.data.labels import CLASSES
from pipa_fast.data.loader import DataConfig
from pipa_fast.evaluation.inference import SlidingWindow
from pipa_fast.models import ModelConfig, coarsest_stride, network_stride, patch_stride
from pipa_fast.program import program
from pipa_fast.uda.config import AdaptationConfig


@dataclass(kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and polynomial decay (DAFormer's `poly10warm.py`)."""

    lr: float = 6e-5
    head_lr_multiplier: float = 10.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: int = 1500
    """Iterations over which the rate rises linearly from `warmup_ratio` of its value."""
    warmup_ratio: float = 1e-6
    power: float = 1.0
    clip: float | None = None
    """Largest norm of the gradient; None clips nothing, as in the lineage."""

    def __post_init__(self) -> None:
        for name in ("lr", "head_lr_multiplier"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"optimizer.{name}", value, "a positive finite number")
        for name in ("weight_decay", "power"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"optimizer.{name}", value, "finite, at least 0")
        fine = all(0 <= beta < 1 for beta in self.betas)
        require(fine, "optimizer.betas", self.betas, "two numbers in [0, 1)")
        require(self.warmup >= 0, "optimizer.warmup", self.warmup, "a count of iterations")
        ratio, clip = self.warmup_ratio, self.clip
        require(0 <= ratio <= 1, "optimizer.warmup_ratio", ratio, "a share in [0, 1]")
        require(clip is None or clip > 0, "optimizer.clip", clip, "a positive norm, or None")


@dataclass(kw_only=True)
class RunConfig:
    """Where a run writes and how often."""

    dir: str = "runs"
    name: str | None = None
    """Folder of the run below `dir`; the recipe's name if None."""
    resume: Literal["auto", "never"] = "never"
    """"auto" continues from the newest sound checkpoint of the run's folder, if there is one.
    "never" starts anew; a folder that holds a run is renamed to NAME.1, NAME.2, … before."""
    other_images: bool = False
    """Whether a run may go on with training images of other names, number or class counts than the
    checkpoint's, as after one was taken out: from then on, other ones are drawn."""
    stop_after: int | None = None
    """Save and leave after this step [iteration], as a time slot's end would; null goes on to the
    end. The exit status is 0, as where a signal asked."""
    baseline: str | None = None
    """Folder of a source-only run that the report compares with."""
    log_every: int = 50
    eval_every: int = 4000
    checkpoint_every: int = 1000
    keep: int = 2
    """Checkpoints kept, the newest."""
    keep_every: int | None = None
    """Besides these, each of a multiple of so many iterations is kept; null: none is."""
    bad_steps: int = 20
    """Steps in a row without a finite gradient after which the run ends, when losses are logged.
    Each is left out, and nothing of it stays."""
    timeout: float = 600.0
    """How long ranks wait for one that does not come, and a process for its own next step or image
    of an evaluation, before the run ends [s]."""
    report: bool = True

    def __post_init__(self) -> None:
        for name in ("log_every", "eval_every", "checkpoint_every", "keep", "bad_steps"):
            value = getattr(self, name)
            require(value > 0, f"run.{name}", value, "a positive count")
        fine = 0 < self.timeout <= 1e9  # torch counts it in a timedelta
        require(fine, "run.timeout", self.timeout, "a positive time of at most 1e9 [s]")
        often, kept = self.checkpoint_every, self.keep_every
        fine = kept is None or (kept > 0 and kept % often == 0)
        expected = f"a positive multiple of run.checkpoint_every ({often}), or null"
        require(fine, "run.keep_every", kept, expected)
        fine = self.name is None or is_below(self.name)
        require(fine, "run.name", self.name, "a folder's name below run.dir, or null")
        fine = self.stop_after is None or self.stop_after > 0
        require(fine, "run.stop_after", self.stop_after, "a positive count, or null")


@dataclass(kw_only=True)
class EvaluationConfig:
    """How validation images are seen. Scores are at their labels' own size either way."""

    batch_size: int = 4
    """Images that are scored at once, fewer of those above 2048 x 1024. Takes memory, changes no
    score."""
    size: tuple[int, int] | None = None
    """Height and width that images are resized to, keeping their proportions as data.source_size
    does [pixels]; None: as they are."""
    crop: tuple[int, int] | None = None
    """Height and width of sliding windows [pixels]; None: images whole."""
    stride: tuple[int, int] | None = None
    """Distance of the windows [pixels]; None: two thirds of the crop."""
    window_batch: int = 4
    """Windows in one forward pass at most, over all images. Takes memory, changes no score."""
    flip: bool = False
    """See images mirrored too, and average probabilities."""
    classes: Literal["dataset", "19", "16", "13"] = "dataset"
    """What the mean IoU is over: the target's own classes, or Cityscapes' as the field counts them:
    all 19, the 16 that SYNTHIA has, or its 13 without wall, fence and pole."""

    def __post_init__(self) -> None:
        for name in ("size", "crop", "stride"):
            value = getattr(self, name)
            fine = value is None or min(value) > 0
            require(fine, f"evaluation.{name}", value, "two positive sizes, or null")
        for name in ("batch_size", "window_batch"):
            value = getattr(self, name)
            require(value > 0, f"evaluation.{name}", value, "a positive count")
        fine = self.stride is None or self.crop is not None
        require(fine, "evaluation.stride", self.stride, "null where evaluation.crop is null")
        try:
            _ = self.window  # which checks the two against each other
        except ValueError as error:
            raise ValueError(f"evaluation.{error}") from error

    @property
    def window(self) -> SlidingWindow | None:
        """The sliding window, None where images are seen whole."""
        if self.crop is None:
            return None
        return SlidingWindow.of(self.crop, self.stride, batch=self.window_batch)

    @property
    def view(self) -> dict[str, Any]:
        """How `evaluation.inference` is to see images, as its keyword arguments."""
        return {"image_size": self.size, "window": self.window, "flip": self.flip}


@dataclass(kw_only=True)
class Config:
    """Everything that a run depends on."""

    recipe: str
    """Its name, which the file brings; names the run's folder too, where run.name does not."""
    seed: int = 0
    iterations: int = 40_000
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """"auto" is bf16 where the device computes in it; else fp16 on a GPU, fp32 on a CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    adaptation: AdaptationConfig = field(default_factory=AdaptationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        require(is_below(self.recipe), "recipe", self.recipe, "a folder's name below run.dir")
        require(self.iterations > 0, "iterations", self.iterations, "a positive count")
        fine = 0 <= self.seed < 2**63  # as torch takes it
        require(fine, "seed", self.seed, "a non-negative integer below 2^63")
        self._check_classes()
        mixed, height = self.adaptation.mixed, self.data.crop[0]
        read = mixed.weight > 0 or self.adaptation.masked.weight > 0
        if read and mixed.ignore_top + mixed.ignore_bottom >= height:
            raise ValueError(
                "adaptation.mixed.ignore_top and ignore_bottom must leave rows of data.crop's "
                f"{height} to learn from; got {mixed.ignore_top} and {mixed.ignore_bottom}"
            )
        patch = self.adaptation.patch
        if patch.first_is_target:
            fits = patch.weight > 0 and self.data.patch_crop == self.data.crop
            require(
                fits,
                "adaptation.patch.first_is_target",
                True,
                "false, unless adaptation.patch.weight is above 0 and data.patch_crop is data.crop "
                f"(they are {patch.weight}, {self.data.patch_crop} and {self.data.crop})",
            )
        self._check_detail()
        self._check_cells()
        self._check_statistics()
        self._check_blur()
        if self.data.micro_batch is not None:
            expected = "frozen with data.micro_batch: others would count a part's statistics, twice"
            norm = self.model.batch_norm
            require(norm == "frozen", "model.batch_norm", norm, expected)
        stride = patch_stride(self.model)
        require(
            patch.weight == 0 or self.data.stride % stride == 0,
            "data.stride",
            self.data.stride,
            f"a multiple of {stride}, the side of a cell of the patch embeddings of "
            f"{self.model.encoder}, where adaptation.patch.weight is above 0",
        )

    def _check_classes(self) -> None:
        """Raise ValueError unless network, scores and feature distance have the labels' classes."""
        own, number = self.data.classes, self.model.num_classes
        whose = "Cityscapes', where data.classes is null" if own is None else "data.classes"
        count = len(self.class_names)
        require(number == count, "model.num_classes", number, f"{count}, the number of {whose}")
        scored, features = self.evaluation.classes, self.adaptation.features
        fine = own is None or scored == "dataset"
        require(fine, "evaluation.classes", scored, "dataset, where data.classes are given")
        fine = features.weight == 0 or max(features.classes) < number
        require(fine, "adaptation.features.classes", features.classes, f"ids below {number}")

    def _check_detail(self) -> None:
        """Raise ValueError unless crops hold a detail window, on the network's grid."""
        if not self.model.hrda.enabled:
            return
        stride, (height, width) = network_stride(self.model), self.model.hrda.detail
        for name, size in (("crop", self.data.crop), ("patch_crop", self.data.patch_crop)):
            fits = not any(side % stride for side in size)
            require(fits, f"data.{name}", size, f"multiples of {stride}, for HRDA's two scales")
        fits = self.data.crop[0] >= height and self.data.crop[1] >= width
        require(fits, "data.crop", self.data.crop, f"at least model.hrda.detail {height, width}")

    def _check_cells(self) -> None:
        """Raise ValueError unless crops hold whole cells of the encoder's last map, if needed."""
        cell, hrda = coarsest_stride(self.model), self.model.hrda
        whole = 2 * cell if hrda.enabled else cell  # of what HRDA sees at half the size
        pads = self.model.encoder in ("streets_s", "resnet101")  # so that any side holds a cell
        sizes = {"data.crop": (self.data.crop, whole)}
        if self.adaptation.patch.weight > 0:
            sizes["data.patch_crop"] = self.data.patch_crop, whole
        if hrda.enabled:
            sizes["model.hrda.detail"] = hrda.detail, cell
        for name, (size, least) in sizes.items():
            expected = f"at least {least}, one cell of {self.model.encoder}'s last map"
            require(pads or min(size) >= least, name, size, expected)
        fits = self.adaptation.features.weight == 0 or not any(s % whole for s in self.data.crop)
        expected = f"multiples of {whole}, where adaptation.features.weight is above 0"
        require(fits, "data.crop", self.data.crop, expected)

    def _check_statistics(self) -> None:
        """Raise ValueError where batch norm would have a single value of a channel."""
        model, data = self.model, self.data
        if model.batch_norm != "batch" or data.batch_size > 1:
            return
        if model.encoder == "resnet101":
            cell = coarsest_stride(model) * (2 if model.hrda.enabled else 1)
        elif model.head in ("daformer", "segformer") or self.adaptation.pixel.weight > 0:
            cell = network_stride(model)
        else:
            return
        expected = f"above {cell} high or wide with data.batch_size 1 and model.batch_norm batch"
        require(
            max(data.crop) > cell, "data.crop", data.crop, f"{expected}, or it is a single cell"
        )

    def _check_blur(self) -> None:
        """Raise ValueError unless crops hold what the blur reflects at their borders, if needed."""
        terms = (self.adaptation.mixed, self.adaptation.masked)
        blurred = any(term.weight > 0 and term.augment for term in terms)
        half = STRONG.taps // 2
        expected = f"sides above {half} where adaptation.mixed or masked augments images"
        require(not blurred or min(self.data.crop) > half, "data.crop", self.data.crop, expected)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by train id."""
        return self.data.classes or CLASSES

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return Path(self.run.dir) / (self.run.name or self.recipe)


def recipes() -> dict[str, Path]:
    """Return the shipped recipes by name."""
    folder = Path(str(resources.files("pipa_fast") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def parts() -> dict[str, Path]:
    """Return the shipped parts of recipes by name, `parts/NAME`: bases, not runs."""
    folder = Path(str(resources.files("pipa_fast") / "recipes" / "parts"))
    return {f"parts/{path.stem}": path for path in sorted(folder.glob("*.yaml"))}


def read_recipe(name: str) -> dict[str, Any]:
    """Read a recipe by name or path.

    A `base` key names the recipe whose settings it changes, or several, each laid over those before
    it. Files are looked for beside the recipe first, then from the working directory.

    Raises:
        ValueError: no such recipe, or a file that cannot be read.
    """
    return _read(name, recipes())


def _read(name: str, known: Mapping[str, Path], above: tuple[Path, ...] = ()) -> dict[str, Any]:
    what = f"base of {above[-1]}" if above else "config"
    path = known.get(name, Path(name))
    if above and name not in known and (beside := above[-1].parent / name).is_file():
        path = beside
    if not path.is_file():
        near = did_you_mean(name, known)
        if near:  # fifty names would hide it
            raise ValueError(f"{what} must be a YAML file or a recipe's name; got {name!r}{near}")
        raise ValueError(f"{what} must be a YAML file or one of {', '.join(known)}; got {name!r}")
    loop = path.resolve() in [other.resolve() for other in above]
    require(not loop, what, name, "a recipe that is not built on it")
    content = _read_mapping(path)
    base = content.pop("base", None)
    content.setdefault("recipe", path.stem)
    bases = [base] if isinstance(base, str) else [] if base is None else base
    names = isinstance(bases, list) and all(isinstance(each, str) for each in bases)
    require(names, f"base of {path}", base, "a recipe's name or a list of names")
    merged: dict[str, Any] = {}
    for each in bases:
        merged = merge(merged, _read(each, {**known, **parts()}, (*above, path)))
    return merge(merged, content)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes` laid over it, mapping by mapping."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def parser() -> ArgumentParser:
    """Return the command line's parser: every field of Config is an option."""
    made = ArgumentParser(
        prog=program("train"),
        description="Train a recipe. Example: --config streets_pipa --iterations 500 --seed 1. "
        "--resume auto is short for --run.resume auto.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    made.add_argument("--config", type=str, help="recipe name or YAML file; other options override")
    made.add_class_arguments(Config)
    return made


def load(recipe: Mapping[str, Any], argv: Sequence[str] = ()) -> Config:
    """Return the Config of a recipe's mapping, with the overrides of `argv` laid over it.

    Raises:
        ValueError: an unknown key, a wrong type or an impossible combination.
    """
    made = parser()
    _check_sections(recipe, Config)
    try:
        settings = made.parse_args(list(argv), namespace=made.parse_object(dict(recipe)))
        values = made.instantiate(settings)
    except ArgumentError as error:
        raise ValueError(f"config: {error}{_hint(str(error))}") from error
    return Config(**{f.name: values[f.name] for f in fields(Config)})


def parse(argv: Sequence[str] | None = None) -> Config:
    """Return the Config of a command line; a bad one ends the process with exit code 2."""
    argv = [
        re.sub(r"^--resume(?==|$)", "--run.resume", word)
        for word in (sys.argv[1:] if argv is None else argv)
    ]
    try:
        if "-h" in argv or "--help" in argv:
            # What stands below a field is its help. It is read from the sources, which takes time.
            set_parsing_settings(docstring_parse_attribute_docstrings=True)
            made = parser()
            for action in made._actions:  # load() is given the recipe's name by the file
                if action.dest in ("config", "recipe"):
                    action.required = action.dest == "config"
            made.print_help()
            raise SystemExit(0)
        name = _option(argv, "--config")
        if name is None:
            raise ValueError(f"--config must name a YAML file or one of {', '.join(recipes())}")
        return load(read_recipe(name), argv)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def to_dict(config: Config) -> dict[str, Any]:
    """Return the resolved settings as plain values, as saved in `config.yaml`."""
    return json.loads(json.dumps(asdict(config)))


def read_settings(path: Path) -> Config:
    """Return the Config that a run saved as `config.yaml`.

    Raises:
        ValueError: the file is no YAML, or its settings are no longer accepted; it is named.
    """
    values = _read_mapping(path)
    try:
        return load(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except (ValueError, yaml.YAMLError) as error:  # ValueError: the bytes are no text
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping; got {type(content).__name__}")
    return content


def _check_sections(values: Mapping[str, Any], config: type, prefix: str = "") -> None:
    """Raise ValueError where a single value stands for a section of settings."""
    for entry in fields(config):
        value = values.get(entry.name, {})
        if is_dataclass(entry.type):
            name = f"{prefix}{entry.name}"
            require(isinstance(value, Mapping), name, value, "a section of settings")
            _check_sections(value, entry.type, f"{name}.")  # type: ignore[arg-type]


def _option(argv: Sequence[str], option: str) -> str | None:
    """Return the last value of `option` in `argv`, in either of its spellings."""
    found = None
    for i, word in enumerate(argv):
        if word == option and i + 1 < len(argv):
            found = argv[i + 1]
        elif word.startswith(option + "="):
            found = word.split("=", 1)[1]
    return found


def _hint(message: str) -> str:
    """Return a "did you mean" for the unknown option that a parser's message names, or nothing."""
    found = re.search(
        r"unrecognized arguments: --(?P<option>[\w.]+)"
        r"|(?:Group '(?P<group>[\w.]+)' does not accept o|O)ption '(?P<key>[\w.]+)'",
        message,
    )
    if found is None:
        return ""
    word = ".".join(part for part in found.group("group", "option", "key") if part)
    names = _names(Config)
    ends = [name for name in names if name.endswith(f".{word}")]
    if ends:
        return f" (did you mean {' or '.join(map(repr, ends))}?)"
    return did_you_mean(word, [*names, "config", "resume"])


def _names(config: type, prefix: str = "") -> list[str]:
    """Return the dotted names of all fields of a dataclass of dataclasses."""
    names = []
    for entry in fields(config):
        names.append(f"{prefix}{entry.name}")
        if is_dataclass(entry.type):
            names += _names(entry.type, f"{names[-1]}.")  # type: ignore[arg-type]
    return names
