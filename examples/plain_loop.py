# SPDX-License-Identifier: Apache-2.0
"""PixelContrastLoss beside the cross-entropy, in a plain PyTorch loop.

Trains a small network on labelled `streets` scenes twice from the same start and with the same
batches, without the contrast and with it. It prints the losses and, on scenes not seen, the mIoU
and how far apart the features of different classes are.

    python examples/plain_loop.py
"""

import argparse
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipa_fast.data import CLASSES, IGNORE_INDEX, Sample, Streets
from pipa_fast.evaluation.metrics import ConfusionMatrix
from pipa_fast.losses import PixelContrastLoss, resize_nearest


def block(
    channels_in: int, channels_out: int, stride: int = 1, dilation: int = 1
) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels_out, 3, stride, dilation, dilation, bias=False)
    return [convolution, nn.BatchNorm2d(channels_out), nn.ReLU()]


class Network(nn.Module):
    """Features at a quarter of the images' size, their classifier, and a head for the contrast."""

    def __init__(self, width: int = 32, dim: int = 32) -> None:
        super().__init__()
        layers = block(3, width, stride=2) + block(width, width, stride=2)
        layers += block(width, width, dilation=2) + block(width, width, dilation=4)
        self.encoder = nn.Sequential(*layers, *block(width, width, dilation=8))
        self.classifier = nn.Conv2d(width, len(CLASSES), 1)
        self.projection = nn.Conv2d(width, dim, 1)  # not needed once trained


def to_tensors(scenes: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Return images [B, 3, H, W] in [0, 1] and labels [B, H, W]."""
    images = torch.stack([torch.tensor(s.image) for s in scenes]).permute(0, 3, 1, 2) / 255
    return images, torch.stack([torch.tensor(s.label) for s in scenes]).long()


def train(weight: float, steps: int, seed: int, device: str) -> tuple[Network, list[list[float]]]:
    """Return the network after `steps` steps, and each step's cross-entropy and contrast."""
    torch.manual_seed(seed)
    network = Network().to(device).train()
    contrast = PixelContrastLoss(temperature=0.1, num_anchors=1024).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    scenes, history = Streets("synthetic", "train"), []
    for _ in range(steps):
        chosen = [scenes[int(i)] for i in torch.randint(len(scenes), (4,))]
        images, labels = (t.to(device) for t in to_tensors(chosen))
        features = network.encoder(images)
        logits = F.interpolate(network.classifier(features), labels.shape[1:], mode="bilinear")
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX)
        # With the predictions, half of the anchors are pixels that the network gets wrong.
        term = contrast(network.projection(features), labels, logits.argmax(1))
        optimizer.zero_grad()
        (loss + weight * term).backward()
        optimizer.step()
        history.append([float(loss.detach()), float(term.detach())])
    return network, history


@torch.no_grad()
def measure(network: Network, scenes: Sequence[Sample], device: str) -> dict[str, float]:
    """Return the mIoU [%] and cosines of features: to their class's mean, and between the means.

    They are what the classifier reads, which both networks have learnt to use, seen from the
    middle of the classes: behind a ReLU, all vectors point the same way from 0.
    """
    network.eval()
    images, labels = (t.to(device) for t in to_tensors(scenes))
    features = network.encoder(images)
    logits = F.interpolate(network.classifier(features), labels.shape[1:], mode="bilinear")
    confusion = ConfusionMatrix(len(CLASSES), device=device)
    confusion.update(logits.argmax(1), labels)
    rows = features.permute(0, 2, 3, 1).flatten(0, 2)
    cells = resize_nearest(labels, (features.shape[2], features.shape[3])).flatten()
    present = [c for c in Streets.eval_classes if (cells == c).any()]
    rows = F.normalize(rows - torch.stack([rows[cells == c].mean(0) for c in present]).mean(0))
    means = F.normalize(torch.stack([rows[cells == c].mean(0) for c in present]))
    own = [(rows[cells == c] @ mean).mean() for c, mean in zip(present, means, strict=True)]
    others = (means @ means.T)[~torch.eye(len(means), dtype=torch.bool, device=device)]
    own, other = float(torch.stack(own).mean()), float(others.mean())
    miou = 100 * confusion.miou(Streets.eval_classes)
    return {"miou": miou, "own": own, "other": other, "apart": own - other}


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(argv)
    unseen = Streets("synthetic", "val")[:20]
    results = {}
    for name, weight in (("cross-entropy alone", 0.0), ("with 0.1 * contrast", 0.1)):
        network, history = train(weight, options.steps, options.seed, options.device)
        found = measure(network, unseen, options.device)
        first, last = (torch.tensor(h).mean(0).tolist() for h in (history[:5], history[-5:]))
        print(f"{name}: cross-entropy {first[0]:.2f} -> {last[0]:.2f},", end=" ")
        print(f"contrast {first[1]:.2f} -> {last[1]:.2f}, mIoU {found['miou']:.1f} %")
        print(f"  cosine to own class's mean {found['own']:.3f}, between", end=" ")
        print(f"means {found['other']:+.3f}: {found['apart']:.3f} apart")
        results[name] = found | {"first": first[0], "last": last[0], "contrast": last[1]}
    return results


if __name__ == "__main__":
    main()
