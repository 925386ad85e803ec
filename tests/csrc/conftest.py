# SPDX-License-Identifier: Apache-2.0
"""The native extensions, or a skip where they were not built."""

import pytest
import torch


@pytest.fixture(scope="session")
def native():
    """The namespace of the CPU operators."""
    pytest.importorskip("pipa_fast._C")
    return torch.ops.pipa_fast_cpu


@pytest.fixture(scope="session")
def host():
    return pytest.importorskip("pipa_fast._host")


def available(name, host):
    if not host.cpu_features()[name]:
        pytest.skip(f"this CPU has no {name}")
    return name


@pytest.fixture(params=["portable", "avx2", "avx512"])
def isa(request, host):
    return available(request.param, host)


@pytest.fixture(params=["portable_bf16", "avx512_bf16"])
def bf16_isa(request, host):
    """An instruction set that multiplies bfloat16 as it is; floats as the set without does."""
    return available(request.param, host)


@pytest.fixture(params=["sm_80", "sm_90a"])
def kernels(emulator, request):
    """The CUDA kernels on a CPU, of either chip: Hopper has its own for 16-bit numbers."""
    return emulator.of(request.param)


@pytest.fixture
def threads():
    """Sets torch's threads, and puts them back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
