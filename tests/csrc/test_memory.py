# SPDX-License-Identifier: Apache-2.0
"""Memory beyond inputs and outputs stays within bounds, by the system's count of a process."""

import os
import platform
import subprocess
import sys

import pytest

COUNT = """
import sys
import torch, pipa_fast._C
import torch.nn.functional as F

op = torch.ops.pipa_fast_cpu

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(l for l in lines if l.startswith("VmHWM")).split()[1]) * 1024

def reset():
    open("/proc/self/clear_refs", "w").write("5")  # the peak becomes what is in use now
"""

CONTRAST = """
n, d, threads = map(int, sys.argv[1:])
torch.set_num_threads(threads)
one = torch.tensor(1.0)

def contrast(x, y):
    loss, z, u = op.pixel_contrast_forward(x, y, None, 0.1, False, 255, "")
    return op.pixel_contrast_backward(one, x, y, None, z, u, 0.1, False, 255, "")

def patch(x, y):
    return op.patch_consistency_forward(x[:n // 4], x[:n // 4], x, y[:n // 4], y, None, 0.1, "")[1]

for run, rows in ((contrast, n), (patch, n // 4)):
    x, y = F.normalize(torch.randn(n, d), dim=1), torch.randint(0, 19, (n,))
    run(x[:400].contiguous(), y[:400])  # pages of code, threads' stacks
    reset()
    before = peak()
    out = run(x, y)
    extra = peak() - before - out.numel() * 4
    print(extra, 4 * rows * d * 4)
"""

# The whole of a loss and its gradient, as autograd runs it, for 19 x 128 x 128 logits.
UPSAMPLING = """
from pipa_fast import ops
torch.set_num_threads(int(sys.argv[1]))

def eager(x, y):
    full = F.interpolate(x, y.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(full, y, ignore_index=255)

def eager_labels(x, y):
    full = F.interpolate(x, y.shape[-2:], mode="bilinear", align_corners=False)
    return full.softmax(1).max(1).values.mean()

def labels(x, y):
    return ops.pseudo_labels(x.detach(), size=y.shape[-2:], threshold=0.9)[1].mean()

for loss, other in ((ops.upsampled_cross_entropy, eager), (labels, eager_labels)):
    extras = []
    for run in (loss, other):
        for side in (8, 128):  # the first brings in code and threads' stacks
            x = torch.randn(1, 19, side, side).requires_grad_(other is eager)
            y = torch.randint(0, 19, (1, 4 * side, 4 * side))
            reset()
            before = peak()
            value = run(x, y)
            if x.requires_grad:
                value.backward()
        extras.append(peak() - before)
    print(extras[0], int(0.15 * extras[1]))
"""


def measure(script: str, *arguments: int) -> None:
    if platform.system() != "Linux":
        pytest.skip("reads /proc")
    pytest.importorskip("pipa_fast._C")
    result = subprocess.run(
        [sys.executable, "-c", COUNT + script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        # what is freed goes back to the system at once, and is not there to be used again
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"},
    )
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        extra, bound = map(int, line.split())
        assert 0 < extra < bound


@pytest.mark.parametrize("threads", [1, 8])
def test_memory_stays_linear(threads):
    measure(CONTRAST, 12288, 64, threads)


@pytest.mark.slow
def test_memory_of_many_pixels():
    measure(CONTRAST, 32768, 64, 4)


@pytest.mark.parametrize("threads", [1, 8])
def test_full_size_logits_are_not_stored(threads):
    measure(UPSAMPLING, threads)
