# SPDX-License-Identifier: Apache-2.0
"""Random choices as functions of (seed, stream, iteration, image): no state, the same on any rank.

A stream is the name of what is chosen, so that no two choices share their numbers.
"""

import functools
import hashlib

import numpy as np
import torch
from torch import Tensor

from pipa_fast.checks import require
from pipa_fast.ops._random import position_hash

_MAX_INDEX = 2**24  # images of a step


def _stream_number(stream: str) -> int:
    """Return 63 bits of a name, the same in every process (`hash` is not)."""
    digest = hashlib.blake2b(stream.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, stream: str, iteration: int, index: int) -> np.random.Generator:
    """Return numpy's generator for one image's choice on the host."""
    require(seed >= 0, "seed", seed, "a non-negative integer")
    entropy = (seed, _stream_number(stream), iteration, index)
    return np.random.default_rng(np.random.SeedSequence(entropy))


@functools.cache
def _start(seed: int, stream: str) -> int:
    return int(generator(seed, stream, 0, 0).integers(2**62))


def uniform(
    seed: int,
    stream: str,
    iteration: Tensor,  # [] int64
    index: Tensor,  # [B] int64, below 2^24
    n: int,
) -> Tensor:
    """Return [B, n] float32 in [0, 1) on the tensors' device, without a word to the host.

    Row i depends on `index[i]` and not on which other images are in the batch.
    """
    own = _start(seed, stream) + iteration * _MAX_INDEX + index
    bits = position_hash(own, len(index), n, index.device)
    return (bits >> 8).to(torch.float32) * 2.0**-24
