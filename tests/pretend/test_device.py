# SPDX-License-Identifier: Apache-2.0
"""What the pretended GPU must show of a real one; test_pretend.py runs this file on it."""

import copy
import io

import pytest
import torch

from tests.ops.test_waits import waits_refused
from tests.pretend.gpu import NAME

PRETENDED = torch.cuda.is_available() and torch.cuda.get_device_name() == NAME
NEEDS_IT = pytest.mark.skipif(not PRETENDED, reason="needs the pretended GPU")
pytestmark = NEEDS_IT


def on_gpu(*shape):
    return torch.randn(*shape, device="cuda")


@pytest.mark.parametrize(
    "mix",
    [
        lambda x, y: x + y,
        lambda x, y: y @ x.T,
        lambda x, y: torch.where(x > 0, x, y),
        lambda x, y: torch.cat((x, y)),
        lambda x, y: x.add_(y),
        lambda x, y: x.gather(1, y.long().clamp(0, 1)),
        lambda x, y: torch.nn.functional.linear(x, y),
    ],
)
def test_tensors_of_two_devices_do_not_meet(mix):
    x, y = on_gpu(2, 2), torch.randn(2, 2)
    with pytest.raises(RuntimeError, match="same device"):
        mix(x, y)
    assert (mix(x, y.to("cuda"))).is_cuda


def test_numbers_may_come_from_the_host():
    x = on_gpu(3)
    assert torch.equal((x * torch.tensor(2.0)).cpu(), 2 * x.cpu())


@pytest.fixture
def no_waits():
    with waits_refused():
        yield


@pytest.mark.usefixtures("no_waits")
@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: x[torch.tensor([1])],
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: x.cpu(),
        lambda x: torch.tensor([1.0], device="cuda"),
        lambda x: torch.ones(3).to("cuda"),
        lambda x: x.copy_(torch.ones(6)),
    ],
)
def test_what_waits_is_told(wait):
    with pytest.raises(RuntimeError, match="synchronizing"):
        wait(torch.zeros(6, device="cuda"))


@pytest.mark.usefixtures("no_waits")
def test_what_need_not_wait_does_not():
    x = torch.ones(6).to("cuda", non_blocking=True)
    torch.full((), 3.0, device="cuda").add_(x[2]).mul_(x[torch.arange(2, device="cuda")].sum())


def test_views_and_results_in_place_are_of_the_given_memory():
    x = torch.arange(12.0).to("cuda")
    view = x.view(3, 4)[1:, ::2]
    assert view.untyped_storage()._cdata == x.untyped_storage()._cdata
    assert view.mul_(-1) is view
    assert x[4:].tolist() == [-4, 5, -6, 7, -8, 9, -10, 11]
    out = torch.empty(0, device="cuda")
    assert torch.add(x, 1, out=out) is out and out.shape == (12,) and out[11] == 12


def test_gradients_copies_and_files():
    layer = torch.nn.Conv2d(3, 4, 3, groups=1).to("cuda")
    layer(on_gpu(2, 3, 8, 8)).square().sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.device.type == "cuda"
    assert torch.equal(copy.deepcopy(layer).weight, layer.weight)
    stored = io.BytesIO()
    torch.save(layer.state_dict(), stored)
    stored.seek(0)
    read = torch.load(stored, map_location="cpu", weights_only=True)
    assert torch.equal(read["weight"], layer.weight.cpu())


def test_autocast_is_that_of_a_gpu():
    x = on_gpu(4, 4)
    with torch.autocast("cuda", torch.float16):
        assert (x @ x).dtype == torch.float16
        assert x.half().exp().dtype == torch.float32
