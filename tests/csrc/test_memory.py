# SPDX-License-Identifier: Apache-2.0
"""Memory beyond inputs and outputs stays below 4 N D floats, by the kernel's count of a process."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import sys
import torch, pipa_fast._C
import torch.nn.functional as F

n, d, threads = map(int, sys.argv[1:])
torch.set_num_threads(threads)
op = torch.ops.pipa_fast_cpu
one = torch.tensor(1.0)

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(l for l in lines if l.startswith("VmHWM")).split()[1]) * 1024

def reset():
    open("/proc/self/clear_refs", "w").write("5")  # the peak becomes what is in use now

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


def measure(n: int, d: int, threads: int) -> None:
    if platform.system() != "Linux":
        pytest.skip("reads /proc")
    pytest.importorskip("pipa_fast._C")
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(n), str(d), str(threads)],
        capture_output=True,
        text=True,
        check=True,
    )
    for line in result.stdout.splitlines():
        extra, bound = map(int, line.split())
        assert 0 < extra < bound


@pytest.mark.parametrize("threads", [1, 8])
def test_memory_stays_linear(threads):
    measure(12288, 64, threads)


@pytest.mark.slow
def test_memory_of_many_pixels():
    measure(32768, 64, 4)
