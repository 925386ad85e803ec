# SPDX-License-Identifier: Apache-2.0
"""PatchConsistencyLoss in a self-training loop of one's own: EMA teacher, two overlapping crops.

A small network learns the synthetic `streets`; then its moving average labels two overlapping crops
of each real scene, and the student learns from that. In the second of two runs, a place is also to
look alike in both crops, and does. The mIoU (real scenes not seen) moves up or down by the seed.

    python examples/self_training.py
"""

import argparse
import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pipa_fast import ops
from pipa_fast.bank import FeatureBank
from pipa_fast.data import CLASSES, Streets
from pipa_fast.data.crops import crop_pair
from pipa_fast.evaluation.inference import evaluate
from pipa_fast.losses import PatchConsistencyLoss

CROP, STRIDE = (64, 64), 4  # [pixels] of an image, and of it to a cell of the features


class Network(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, stride, dilation in ((3, 2, 1), (width, 2, 1), (width, 1, 2), (width, 1, 4)):
            norm = nn.BatchNorm2d(width, track_running_stats=False)  # each domain has its own
            layers += [nn.Conv2d(channels, width, 3, stride, dilation, dilation), norm, nn.ReLU()]
        self.encoder, self.classifier = nn.Sequential(*layers), nn.Conv2d(width, len(CLASSES), 1)
        self.projection = nn.Conv2d(width, 32, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.encoder(images))


def supervised(network: Network, scenes: Streets) -> Tensor:
    chosen = [scenes[int(i)] for i in torch.randint(len(scenes), (4,))]
    images = torch.tensor(np.stack([s.image for s in chosen])).permute(0, 3, 1, 2) / 255
    labels = torch.tensor(np.stack([s.label for s in chosen]))
    return ops.upsampled_cross_entropy(network(images), labels)


def draw_crops(scenes: Streets, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return two crops of each image [B, 2, 3, h, w], their boxes [B, 2, 4] and flips [B, 2]."""
    dice = np.random.default_rng(seed)
    images = [scenes.image(int(i)) for i in dice.integers(len(scenes), size=4)]
    pairs = [crop_pair(i, CROP, dice, stride=STRIDE, overlap=(0.2, 0.8)) for i in images]
    crops, boxes, flips, _ = (torch.tensor(np.stack(x)) for x in zip(*pairs, strict=True))
    return crops.permute(0, 1, 4, 2, 3) / 255, boxes, flips


def adapt(start: Network, weight: float, steps: int) -> tuple[Network, float]:
    student, teacher = copy.deepcopy(start), copy.deepcopy(start).requires_grad_(False)
    bank = FeatureBank(capacity=9600, dim=32)
    patch = PatchConsistencyLoss(confidence_threshold=0.8, bank=bank, bank_confidence=0.8)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    source, target = (Streets(style, "train") for style in ("synthetic", "real"))
    for step in range(steps):
        crops, boxes, flips = draw_crops(target, step)
        flat = crops.flatten(0, 1)
        labels, confidence, share = ops.pseudo_labels(teacher(flat), size=CROP, threshold=0.8)
        features = student.encoder(flat)
        loss = share * ops.upsampled_cross_entropy(student.classifier(features), labels)
        maps = [x.unflatten(0, (-1, 2)) for x in (student.projection(features), labels, confidence)]
        views = [x[:, i] for x in maps for i in (0, 1)]  # of each, the first crop and the second
        term = patch(*views, boxes=boxes, flips=flips)
        optimizer.zero_grad()
        (supervised(student, source) + loss + weight * term).backward()  # the teacher is constant
        optimizer.step()
        for mine, own in zip(teacher.parameters(), student.parameters(), strict=True):
            mine.lerp_(own.detach(), max(0.01, 1 / (step + 2)))
    return student, float(term.detach())


@torch.no_grad()
def measure(network: Network) -> dict[str, float]:
    """Return the mIoU [%] and cosines of features: of one place in two crops, of any two places."""
    scenes = Streets("real", "val")
    miou = evaluate(network, scenes[:20], classes=scenes.eval_classes).miou
    crops, boxes, flips = draw_crops(scenes, seed=0)
    maps = [network.encoder(crops[:, i]) for i in (0, 1)]
    maps = [m - m.mean((0, 2, 3), keepdim=True) for m in maps]  # behind a ReLU, all are alike
    pairs = ops.overlap_pairs(boxes, flips, crop_size=CROP, stride=STRIDE, num_pairs=256, seed=0)
    a, b = (ops.gather_pixels(m, index) for m, index in zip(maps, pairs, strict=True))
    alike = a @ b.T
    return {"mIoU": miou, "same place": float(alike.diag().mean()), "any": float(alike.mean())}


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="of each run; thrice as many before")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    torch.manual_seed(options.seed)
    start, scenes = Network(), Streets("synthetic", "train")
    optimizer = torch.optim.AdamW(start.parameters(), lr=3e-3)
    for _ in range(3 * options.steps):
        supervised(start, scenes).backward()
        optimizer.step()
        optimizer.zero_grad()
    results = {"source only": measure(start)}
    for name, weight in (("self-training", 0.0), ("with 0.1 * patch consistency", 0.1)):
        torch.manual_seed(options.seed)
        network, patch = adapt(start, weight, options.steps)
        results[name] = measure(network) | {"patch loss": patch}
    for name, found in results.items():
        print(f"{name}: " + ", ".join(f"{k} {v:.2f}" for k, v in found.items()))
    return results


if __name__ == "__main__":
    main()
