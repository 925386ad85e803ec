# SPDX-License-Identifier: Apache-2.0
"""The ops called from eight threads at once give, to the bit, what a call alone gives."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from pipa_fast import ops
from tests.fuzz import compare, contrast, draws, maps

THREADS, REPEATS = 8, 6
Call = Callable[[], Any]


def calls(way: str) -> Iterator[Call]:
    """Yield calls of every op, of several sizes, those with backends computed by one way."""
    for seed, (n, d) in enumerate(((40, 16), (193, 33), (97, 64))):
        pixel = contrast.Pixel(n=n, d=d, labels="some ignored", seed=seed).arguments()
        yield lambda given=pixel: contrast.run_pixel(given, way, True)
        patch = contrast.Patch(n=n, m=2 * n, d=d, dtype="bfloat16", seed=seed).arguments()
        yield lambda given=patch: contrast.run_patch(given, way, True)
        case = maps.Maps(images=2, classes=19, small=(9, 11), full=(33, 40), seed=seed)
        yield lambda case=case: maps.run_cross_entropy(case.arguments(), way, True)
        if way in ("cpu", "reference"):
            yield lambda case=case: ops.pseudo_labels(case.logits(), size=(33, 40), threshold=0.5)
        else:
            native = torch.ops.pipa_fast_cpu.pseudo_labels
            yield lambda case=case, native=native: native(case.logits(), 33, 40, 0.5, way)
        anchors = draws.Anchors(images=2, size=(16, 16), num_anchors=64, seed=seed).arguments()
        yield lambda given=anchors: ops.sample_anchors(**given)
        pairs = draws.Pairs(images=2, cells=(6, 6), seed=seed).arguments()
        yield lambda given=pairs: ops.overlap_pairs(**given)
        pixels = draws.Pixels(shape=(2, 8, 9, 9), count=40, seed=seed).arguments()
        yield lambda given=pixels: ops.gather_pixels(**given)
        cells = maps.Cells(images=2, cells=(6, 6), stride=4, seed=seed).arguments()
        yield lambda given=cells: ops.downscale_labels(**given)


def bits(result: Any) -> list[bytes]:
    """Return what a call gave, as bytes: nan is equal to itself."""
    tensors = [result] if isinstance(result, torch.Tensor) else [t for t in result if t is not None]
    return [t.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for t in tensors]


@pytest.fixture(params=[1, 2], ids=["one thread each", "two threads each"])
def intra_op(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("way", compare.ways("pixel_contrast"))
def test_eight_threads_at_once(way, intra_op):
    # The environment, which names a backend for ops without that argument, is all threads'.
    with maps.by_way(way if way in ("cpu", "reference") else ""):
        every = list(calls(way))
        alone = [bits(call()) for call in every]
        start = threading.Barrier(THREADS)

        def work(first: int) -> list[str]:
            torch.set_num_threads(intra_op)  # OpenMP's is each thread's own
            start.wait()
            turns = [(first + i) % len(every) for i in range(REPEATS * len(every))]
            return [f"call {at}" for at in turns if bits(every[at]()) != alone[at]]

        with ThreadPoolExecutor(THREADS) as pool:
            wrong = [list(found) for found in pool.map(work, range(THREADS))]
    assert not any(wrong), wrong
