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


@pytest.fixture(params=["portable", "avx2", "avx512"])
def isa(request, host):
    if not host.cpu_features()[request.param]:
        pytest.skip(f"this CPU has no {request.param}")
    return request.param


@pytest.fixture
def threads():
    """Sets torch's threads, and puts them back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
