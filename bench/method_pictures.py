# SPDX-License-Identifier: Apache-2.0
"""The method's pictures for docs/method.md, drawn from the tensors of a trained run's next step.

    python -m pipa_fast.train --config streets_pipa --run.report false
    python -m bench.method_pictures --run runs/streets_pipa     # docs/pictures/*.png

"Before" is the same network as the run found it at its first step. One process, on a CPU.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.method_plots import (
    draw_embeddings,
    draw_matrices,
    draw_pairs,
    draw_self_training,
    draw_views,
)
from bench.program import make_parser
from pipa_fast import ops
from pipa_fast.data.augmentation import VIEWS, strong_augment
from pipa_fast.data.batch import Batch
from pipa_fast.data.datasets import build_dataset
from pipa_fast.data.loader import TrainingSet, batches
from pipa_fast.data.random import generator
from pipa_fast.losses import resize_nearest
from pipa_fast.models import patch_stride
from pipa_fast.training import checkpoint, distributed
from pipa_fast.training.config import read_settings
from pipa_fast.training.trainer import Trainer
from pipa_fast.uda.mixing import class_masks
from pipa_fast.uda.outputs import StepOutputs

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "pictures"


class Step(NamedTuple):
    """A run's networks before and after training, and the batch that comes next."""

    before: Trainer
    after: Trainer
    batch: Batch
    iteration: int


def next_step(run: Path) -> Step:
    """Read a run's newest checkpoint and make the batch of the step after it."""
    config = read_settings(run / checkpoint.SETTINGS)
    patch, pixel = config.adaptation.patch, config.adaptation.pixel
    fine = patch.weight > 0 and pixel.weight > 0 and not patch.first_is_target
    if not fine or config.data.patch_scale != (1.0, 1.0):
        raise ValueError(f"{run} must be of a recipe with both of PiPa's terms, as streets_pipa is")
    state = checkpoint.load_newest(run)
    if state is None:
        raise ValueError(f"{run} must hold a checkpoint")
    world = distributed.start("cpu")
    before, after = Trainer(config, world), Trainer(config, world)
    after.restore(state)
    for trainer in (before, after):
        trainer.network.train()
    training_set = TrainingSet(
        build_dataset(config.data.source, "train", config.data.source_root),
        build_dataset(config.data.target, "train", config.data.target_root),
        config.data,
        seed=config.seed,
    )
    iteration = after.iteration
    batch = next(batches(training_set, start=iteration, iterations=iteration + 1))
    return Step(before, after, batch, iteration)


def outputs(trainer: Trainer, step: Step, group: str) -> StepOutputs:
    """Return what a group's objectives read, of the run's own forward pass."""
    read = {name for o in trainer.step.objectives if o.group == group for name in o.embed}
    trainer.step.taught = None
    with torch.no_grad():
        return trainer.step.make[group](step.batch, step.iteration, embed=tuple(read), touch=False)


def picture(image: Tensor) -> np.ndarray:
    """Return an image [3, h, w] in [0, 1] as uint8 [h, w, 3]."""
    return (image.movedim(0, -1).clamp(0, 1) * 255).byte().numpy()


def self_training(step: Step, index: int) -> dict[str, Any]:
    """Return images and labels of a batch's class mixing."""
    seen = outputs(step.after, step, "mixed")
    taught = step.after.step.taught
    assert taught is not None
    return {
        "source": picture(step.batch.source_image[index]),
        "source_labels": step.batch.source_label[index].numpy(),
        "target": picture(step.batch.target_image[index]),
        "labels": taught.labels[index].numpy(),
        "confidence": taught.confidence[index].numpy(),
        "mixed_labels": seen.labels[index].numpy(),
        "mixed": picture(mixed_images(step, seen)[index]),
    }


def mixed_images(step: Step, seen: StepOutputs) -> Tensor:
    """Return the class-mixed images [B, 3, H, W], before their colours are changed."""
    batch, config = step.batch, step.after.config
    mask = class_masks(
        batch.source_label, seed=config.seed, iteration=batch.iteration, index=batch.index
    )
    return torch.where(mask[:, None], batch.source_image, batch.target_image)


class Anchors(NamedTuple):
    """Sampled anchors of one group, sorted by class."""

    before: Tensor  # [N, D]
    after: Tensor  # [N, D]
    labels: Tensor  # [N]
    image: Tensor  # [N] image of the batch
    place: Tensor  # [N, 2] row and column of the embeddings' map
    hard: Tensor  # [N] whether the trained network's prediction is wrong there


def anchors(step: Step) -> Anchors:
    """Draw source anchors as the run's pixel contrast draws them."""
    seen = outputs(step.after, step, "source")
    embeddings = seen.student.pixel
    assert embeddings is not None
    size = (embeddings.shape[2], embeddings.shape[3])
    labels = resize_nearest(seen.labels, size)
    wrong = resize_nearest(seen.student.logits.argmax(1), size)
    index, label = ops.sample_anchors(labels, wrong, seed=seen.seed)
    own = label != 255
    index, label = index[own], label[own]
    order = label.argsort(stable=True)
    index, label = index[order], label[order]
    first = outputs(step.before, step, "source").student.pixel
    assert first is not None
    cells = size[0] * size[1]
    inside = index % cells
    return Anchors(
        ops.gather_pixels(first, index),
        ops.gather_pixels(embeddings, index),
        label,
        index // cells,
        torch.stack((inside // size[1], inside % size[1]), 1),
        wrong.flatten()[index] != label,
    )


class Pairs(NamedTuple):
    """Two crops of one image, cell by cell of what both see, in the image's own order."""

    whole: np.ndarray  # [H, W, 3] uint8
    boxes: np.ndarray  # [2, 4] y0 x0 y1 x1
    views: list[np.ndarray]  # two crops as the student sees them
    flips: list[bool]
    shared: tuple[int, int, int, int]  # y0 x0 y1 x1 of what both see, in image pixels
    labels: list[np.ndarray]  # [h, w] the teacher's, of both
    confidence: list[np.ndarray]  # [h, w]
    counts: list[np.ndarray]  # [h, w] bool, where the first, the second view is an anchor
    cosines: dict[str, np.ndarray]  # [h, w] of both views' features, before and after
    apart: dict[str, np.ndarray]  # cosines of anchors and negatives


def on_shared(maps: Tensor, box: Tensor, flip: bool, shared: Sequence[int], cell: int) -> Tensor:
    """Cut what both crops see out of one crop's map [..., h, w], mirrored back."""
    maps = maps.flip(-1) if flip else maps
    y, x = ((int(shared[i]) - int(box[i])) // cell for i in (0, 1))
    height, width = ((shared[i + 2] - shared[i]) // cell for i in (0, 1))
    return maps[..., y : y + height, x : x + width]


def pairs(step: Step, index: int) -> Pairs:
    """Collect what the patch consistency compares in one image."""
    config, batch = step.after.config, step.batch
    seen = outputs(step.after, step, "patch")
    assert seen.confidence is not None
    boxes, flips = batch.boxes[index], [bool(f) for f in batch.flips[index]]
    low, high = boxes[:, :2].max(0).values.tolist(), boxes[:, 2:].min(0).values.tolist()
    shared = (low[0], low[1], high[0], high[1])
    count, cell = len(batch.index), patch_stride(config.model)
    size = (config.data.patch_crop[0] // cell, config.data.patch_crop[1] // cell)

    def both(maps: Tensor, side: int) -> list[Tensor]:
        mine = (maps[index], maps[count + index])
        return [
            on_shared(m, boxes[i], flips[i], shared, side)
            for i, m in enumerate(mine)  # mirrored back
        ]

    labels = both(resize_nearest(seen.labels, size), cell)
    sure = both(resize_nearest(seen.confidence, size), cell)
    threshold = config.adaptation.patch.confidence_threshold
    counts = [(sure[1 - i] > threshold) & (sure[1 - i] > sure[i]) for i in (0, 1)]
    cosines, apart = {}, {}
    for name, trainer in (("before", step.before), ("after", step.after)):
        features = outputs(trainer, step, "patch").student.patch
        assert features is not None
        a, b = both(features, cell)
        cosines[name] = (a * b).sum(0).numpy()
        keys, key_labels = b.flatten(1).T, labels[1].flatten()
        other = labels[1].flatten()[:, None] != key_labels[None, :]
        apart[name] = (a.flatten(1).T @ keys.T)[other].numpy()
    views = strong_augment(
        torch.cat((batch.target_crops[:, 0], batch.target_crops[:, 1])),
        seed=config.seed,
        iteration=batch.iteration,
        index=torch.cat((2 * batch.index, 2 * batch.index + 1)),
        stream="views",
        augmentation=VIEWS,
    )
    return Pairs(
        whole_image(step, index),
        boxes.numpy(),
        [picture(views[index]), picture(views[count + index])],
        flips,
        shared,
        [m.numpy() for m in labels],
        [m.numpy() for m in sure],
        [m.numpy() for m in counts],
        cosines,
        apart,
    )


def widest(boxes: Tensor) -> int:
    """Return the image whose crops [B, 2, 4] share most."""
    shared = boxes[:, :, 2:].amin(1) - boxes[:, :, :2].amax(1)
    return int(shared.clamp(min=0).prod(1).argmax())


def whole_image(step: Step, index: int) -> np.ndarray:
    """Return the target image that a slot's crops were cut from."""
    data, slot = step.after.config.data, int(step.batch.index[index])
    images = build_dataset(data.target, "train", data.target_root)
    draw = generator(step.after.config.seed, "target", step.iteration, slot)
    return images[int(draw.integers(len(images)))].image


def embeddings(step: Step, index: int) -> dict[str, Any]:
    """Return a source and a target image with their pixel embeddings' principal axes as colours."""
    config = step.after.config
    samples = [
        build_dataset(config.data.source, "val", config.data.source_root)[index],
        build_dataset(config.data.target, "val", config.data.target_root)[index + 1],
    ]
    images = torch.stack([torch.tensor(s.image).movedim(-1, 0) / 255 for s in samples])
    colours = {}
    for name, trainer in (("before", step.before), ("after", step.after)):
        with torch.no_grad():
            rows = trainer.network.eval()(images, embed=("pixel",)).pixel
        assert rows is not None
        colours[name] = principal_colours(rows)
        trainer.network.train()
    return {
        "images": [s.image for s in samples],
        "truth": [s.label for s in samples],
        "colours": colours,
    }


def principal_colours(maps: Tensor) -> np.ndarray:
    """Return maps [B, D, h, w] along their three principal axes as colours [B, h, w, 3]."""
    rows = maps.movedim(1, -1).flatten(0, 2).double()
    rows = rows - rows.mean(0)
    _, _, axes = torch.linalg.svd(rows, full_matrices=False)
    seen = rows @ axes[:3].T
    low, high = seen.quantile(0.02, 0), seen.quantile(0.98, 0)
    colours = ((seen - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    shape = (maps.shape[0], *maps.shape[2:], 3)
    return (colours.reshape(shape) * 255).byte().numpy()


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the pictures; return the process's exit code."""
    parser = make_parser("bench.method_pictures", __doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/streets_pipa"))
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--image", type=int, default=3, help="slot of the batch that is shown")
    options = parser.parse_args(argv)
    try:
        step = next_step(options.run)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    drawn: dict[str, Callable[[], Image.Image]] = {
        "self_training": lambda: draw_self_training(self_training(step, options.image)),
        "pixel_contrast": lambda: draw_matrices(
            anchors(step), picture(step.batch.source_image[options.image]), options.image
        ),
        "embeddings": lambda: draw_embeddings(embeddings(step, options.image)),
        "patch_views": lambda: draw_views(pairs(step, widest(step.batch.boxes))),
        "patch_pairs": lambda: draw_pairs(pairs(step, widest(step.batch.boxes))),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for name, draw in drawn.items():
        path = options.out / f"{name}.png"
        # So many colours are enough for these, in a third of the bytes
        draw().quantize(255, dither=Image.Dither.NONE).save(path, optimize=True)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
