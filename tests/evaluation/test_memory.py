# SPDX-License-Identifier: Apache-2.0
"""What an evaluation holds at once, by the sizes of its tensors: nothing is computed."""

import dataclasses
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from pipa_fast.evaluation.inference import evaluating, predict_logits
from pipa_fast.models import build_network
from pipa_fast.training.config import Config, load, read_recipe

GIB = 2**30


class Held(TorchDispatchMode):
    """Adds up the bytes of the storages that calls return, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        returned = func(*args, **(kwargs or {}))
        for tensor in tree_iter(returned):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.sizes.pop, storage._cdata)
        self.most = max(self.most, sum(self.sizes.values()))
        return returned


def test_the_tensors_that_live_are_counted():
    with Held() as held:
        kept = torch.empty(1000, dtype=torch.uint8, device="meta")
        for _ in range(3):
            kept.repeat(2)
        kept[5:].add_(1)
    assert held.most == 3000


def hrda(encoder: str) -> Config:
    words = ["--model.encoder", encoder, "--model.weights", "null"]
    return load(read_recipe("gta2cs_hrda_pipa"), words)


def held(config: Config, images: int, window_batch: int) -> float:
    """Return what an evaluation in float32 holds beside the network [GiB].

    Args:
        images: how many of 1024 x 2048 are scored at once.
    """
    seen = dataclasses.replace(config.evaluation, window_batch=window_batch)
    with torch.device("meta"):
        network, batch = build_network(config.model), torch.empty(images, 3, 1024, 2048)
    with evaluating(network), Held() as counted:
        predict_logits(network, batch, **seen.view).argmax(1)
    return counted.most / GIB


def test_hrda_validates_in_a_few_gigabytes():
    """On 24 GB the release runs out of memory there (MIC's issues 56 and 80)."""
    config = hrda("mit_b0")  # what takes most is the head, which MiT-B5 has too
    assert held(config, 1, config.evaluation.window_batch) < 3
    assert held(config, 1, 4) > 6


if __name__ == "__main__":
    for windows in (1, 2, 4):
        print(f"{windows} windows in a pass: {held(hrda('mit_b5'), 4, windows):.1f} GiB")
