# SPDX-License-Identifier: Apache-2.0
"""The contrast over every pixel, against the same over sampled anchors.

Takes one batch of `streets` through an untrained network and measures, in this very run, what each
costs (time, and memory beyond the inputs) and what each says: the gradient of the last layer's
weights, for all pixels once and for samples drawn with several seeds.

    python examples/dense_or_sampled.py --images 2 --draws 8
"""

import argparse
import ctypes
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pipa_fast.data import Streets
from pipa_fast.losses import PixelContrastLoss, resize_nearest


def embedder(dim: int, seed: int) -> tuple[nn.Module, nn.Conv2d]:
    """Return an untrained network to [B, dim, H/2, W/2], and the last layer, all that learns."""
    torch.manual_seed(seed)
    last = nn.Conv2d(dim, dim, 1, bias=False)
    first = nn.Conv2d(3, dim, 7, stride=2, padding=3)
    return nn.Sequential(first, nn.BatchNorm2d(dim), nn.ReLU()).requires_grad_(False), last


def peak_bytes(device: str) -> int:
    """Most bytes that were in use at once since `forget_peak`."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text()  # Linux
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def forget_peak(device: str) -> None:
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        ctypes.CDLL(None).malloc_trim(0)  # freed memory is given back, or it would hide the need
        Path("/proc/self/clear_refs").write_text("5")


def timed(call: Callable[[], Tensor], device: str, repeats: int) -> tuple[Tensor, float, float]:
    """Return what `call` does, its best time [s] and the memory [MB] it takes on top."""
    seconds, _ = [], call()  # the first call finds a backend
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()  # on the host: nothing is left to wait for
        seconds.append(time.perf_counter() - start)
    forget_peak(device)
    before = peak_bytes(device)
    call()
    return result, min(seconds), (peak_bytes(device) - before) / 1e6


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--draws", type=int, default=8, help="seeds of the sampled contrast")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(argv)
    scenes, device = Streets("synthetic", "train")[: options.images], options.device
    images = torch.stack([torch.tensor(s.image) for s in scenes]).permute(0, 3, 1, 2) / 255
    labels = torch.stack([torch.tensor(s.label) for s in scenes]).long().to(device)
    first, last = (part.to(device) for part in embedder(options.dim, options.seed))
    features = first(images.to(device))
    cells = resize_nearest(labels, (features.shape[2], features.shape[3]))
    # As the sampler does: a rare class has as many anchors as a frequent one. Without this, the
    # dense mean is over pixels, and road and sky rule it.
    counts = torch.bincount(cells.flatten(), minlength=256)
    balance = (cells != 255) / counts[cells].clamp(min=1)

    def gradient(contrast: nn.Module, **more: object) -> Tensor:
        loss = contrast(last(features), labels, **more)
        return torch.autograd.grad(loss, last.weight)[0].flatten().double().cpu()

    sampled, dense = PixelContrastLoss(num_anchors=1024), PixelContrastLoss(num_anchors="all")
    rows, draws = cells.numel(), range(options.draws)
    truth, seconds, megabytes = timed(lambda: gradient(dense, weights=balance), device, 2)
    plain = gradient(dense)
    _, seconds_1, megabytes_1 = timed(lambda: gradient(sampled, seed=0), device, 5)
    drawn = torch.stack([gradient(sampled, seed=options.seed + i) for i in draws])
    mean = drawn.mean(0)
    spread = ((drawn - mean).square().sum(1).sum() / (len(drawn) - 1) / mean.square().sum()).sqrt()
    alike = torch.cosine_similarity(drawn, truth[None])
    result = {
        "seconds": seconds,
        "seconds sampled": seconds_1,
        "spread": float(spread),
        "cosine": float(alike.mean()),
        "cosine of mean": float(torch.cosine_similarity(mean, truth, dim=0)),
        "cosine unbalanced": float(torch.cosine_similarity(plain, truth, dim=0)),
        "megabytes": megabytes,
    }
    print(f"all {rows} pixels:      {seconds:.3f} s, {megabytes:.0f} MB beyond the inputs", end=" ")
    print(f"(an N x N matrix of float32 would be {4 * rows**2 / 1e6:.0f} MB)")
    print(f"1,024 sampled anchors: {seconds_1:.3f} s, {megabytes_1:.1f} MB: ", end="")
    print(f"{seconds / seconds_1:.0f} times less time")
    print(f"a sample's gradient has cosine {result['cosine']:.3f} with that of all pixels", end=" ")
    print(
        f"({float(alike.min()):.3f} at worst of {len(drawn)} seeds), and strays from the", end=" "
    )
    print(f"samples' mean by {100 * result['spread']:.0f} % of its length")
    print(
        f"the samples' mean has {result['cosine of mean']:.3f}; all pixels counted alike,", end=" "
    )
    print(f"not classes, {result['cosine unbalanced']:.3f}")
    return result


if __name__ == "__main__":
    main()
