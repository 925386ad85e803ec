# SPDX-License-Identifier: Apache-2.0
"""Where kernels run: on the GPU, or else in Triton's interpreter, which tests/conftest.py chose."""

import os
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode


@pytest.fixture(scope="session")
def device():
    """Where tensors of these tests lie."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        return torch.device("cuda")
    assert os.environ["TRITON_INTERPRET"] == "1"
    return torch.device("cpu")


class Allocations(TorchDispatchMode):
    """Adds up the bytes of all tensors that are made, however soon they go."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        known = {t.untyped_storage()._cdata for t in args if isinstance(t, torch.Tensor)}
        for made in result if isinstance(result, tuple | list) else (result,):
            if isinstance(made, torch.Tensor) and made.untyped_storage()._cdata not in known:
                self.total += made.untyped_storage().nbytes()
        return result


@pytest.fixture
def host_bytes():
    """What a call's host code allocates, results included; its kernels are not started."""

    def count(call, *arguments):
        with mock.patch("pipa_fast.kernels._launch.launch"), Allocations() as made:
            call(*arguments)
        return made.total

    return count


@pytest.fixture
def needs_no_value():
    """Runs host code on tensors without values, where whatever waits for one raises."""

    def run(call, *arguments):
        with FakeTensorMode(allow_non_fake_inputs=False) as mode:
            fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments]
            with mock.patch("pipa_fast.kernels._launch.launch"):
                call(*fakes)
            with pytest.raises(Exception, match="data|item|scalar"):
                fakes[0].sum().item()

    return run
