# SPDX-License-Identifier: Apache-2.0
"""AdamW by torch and by a stand-in for NVIDIA apex: equal trajectories, clipping and states.

The stand-in has apex's names, signatures and layout of state (apex 6424da3b), computed by torch.
"""

import copy
import sys
import types

import pytest
import torch
from torch import nn

from pipa_fast.training.config import OptimizerConfig
from pipa_fast.training.optimizer import build_optimizer, clip_gradients, find_apex

GPU = torch.device("cuda")
CONFIG = OptimizerConfig(lr=1e-2, head_lr_multiplier=3.0, weight_decay=0.1, betas=(0.8, 0.95))


class Applier:
    """apex.multi_tensor_apply.multi_tensor_applier."""

    available = True

    def __call__(self, op, noop_flag_buffer, tensor_lists, *args):
        return op(2048 * 32, noop_flag_buffer, tensor_lists, *args)


def multi_tensor_l2norm(chunk_size, noop_flag, tensor_lists, per_tensor=None):
    assert noop_flag.dtype == torch.int32
    (tensors,) = tensor_lists
    norms = torch.stack([t.norm() for t in tensors])
    return norms.norm()[None], norms if per_tensor else norms.new_empty(0)


class FusedAdam(torch.optim.Optimizer):
    """apex.optimizers.FusedAdam, which counts the steps of a group and not of a parameter."""

    def __init__(
        self,
        params,
        lr=1e-3,
        bias_correction=True,
        betas=(0.9, 0.999),
        eps=1e-8,
        adam_w_mode=True,
        weight_decay=0.0,
        amsgrad=False,
        set_grad_none=True,
        capturable=False,
        master_weights=False,
    ):
        defaults = {"lr": lr, "bias_correction": bias_correction, "betas": betas}
        super().__init__(params, defaults | {"eps": eps, "weight_decay": weight_decay})
        assert adam_w_mode and not (amsgrad or capturable or master_weights)
        groups = self.param_groups
        self.param_groups_master = [{"params": [None] * len(g["params"])} for g in groups]

    def zero_grad(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    @torch.no_grad()
    def step(
        self,
        closure=None,
        grads=None,
        output_params=None,
        scale=None,
        grad_norms=None,
        grad_scaler=None,
    ):
        for group, masters in zip(self.param_groups, self.param_groups_master):  # noqa: B905
            assert group["bias_correction"]
            group["step"] = group.get("step", 0) + 1
            (b1, b2), lr, step = group["betas"], group["lr"], group["step"]
            for p, _ in zip(group["params"], masters["params"]):  # noqa: B905
                if p.grad is None:
                    continue
                state = self.state[p]
                if len(state) == 0:
                    state["exp_avg"] = torch.zeros_like(p)
                    state["exp_avg_sq"] = torch.zeros_like(p)
                m, v = state["exp_avg"], state["exp_avg_sq"]
                m.mul_(b1).add_(p.grad, alpha=1 - b1)
                v.mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
                update = (m / (1 - b1**step)) / ((v / (1 - b2**step)).sqrt() + group["eps"])
                p.sub_(lr * (update + group["weight_decay"] * p))


def install(monkeypatch, **modules):
    """Let these modules be what is installed of apex."""
    for name in ("apex", "apex.optimizers", "apex.multi_tensor_apply", "amp_C"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name, contents in modules.items():
        module = types.ModuleType(name)
        module.__spec__ = types.SimpleNamespace(name=name)  # find_spec looks for it
        module.__path__ = []
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name.replace("__", "."), module)


BUILT = {
    "apex": {},
    "apex__optimizers": {"FusedAdam": FusedAdam},
    "apex__multi_tensor_apply": {"multi_tensor_applier": Applier()},
    "amp_C": {"multi_tensor_l2norm": multi_tensor_l2norm},
}


@pytest.fixture
def apex(monkeypatch):
    install(monkeypatch, **BUILT)
    found = find_apex(GPU)
    assert found is not None
    return found


class Network(nn.Module):
    """Two groups, and a head whose loss starts late."""

    def __init__(self):
        super().__init__()
        self.encoder, self.late = nn.Linear(6, 5), nn.Linear(5, 3)
        self.head = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4))

    def parameter_groups(self, *, lr, weight_decay, head_lr_multiplier):
        heads = [*self.head.parameters(), *self.late.parameters()]
        return [
            {"params": list(self.encoder.parameters()), "lr": lr, "weight_decay": weight_decay},
            {"params": heads, "lr": lr * head_lr_multiplier, "weight_decay": 0.0},
        ]

    def forward(self, x, late):
        x = self.encoder(x).tanh()
        return self.head(x).square().mean() + (self.late(x).square().mean() if late else 0)


def train(network, optimizer, steps, clip=None, apex=None):
    """Some steps, as the trainer takes them without a GradScaler."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 6, generator=generator, dtype=torch.float32)
        network(x.to(next(network.parameters()).dtype), late=step >= 4).backward()
        for group in optimizer.param_groups:
            group["lr"] *= 0.97
        if clip is not None:
            clip_gradients(network.parameters(), clip, apex)
        optimizer.step()
        optimizer.zero_grad()
    return {n: p.detach().clone() for n, p in network.named_parameters()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_trajectories_are_equal(apex, dtype, tolerance, clip):
    one = Network().to(dtype)
    two = copy.deepcopy(one)
    start = {n: p.detach().clone() for n, p in one.named_parameters()}
    torchs = build_optimizer(one, CONFIG)
    assert torchs._step_supports_amp_scaling, "else a bad step would be waited for"
    theirs = train(one, torchs, range(12), clip)
    fused = build_optimizer(two, CONFIG, apex)
    assert isinstance(fused, FusedAdam)
    ours = train(two, fused, range(12), clip, apex)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=tolerance)
        assert (value - start[name]).abs().max() > 1e-2


@pytest.mark.parametrize(("first", "then"), [(True, False), (False, True), (True, True)])
def test_a_run_goes_on_with_the_other_one(apex, first, then):
    """A checkpoint doesn't tell which of the two wrote it, though one parameter starts late."""
    whole = Network().double()
    broken = copy.deepcopy(whole)
    expected = train(whole, build_optimizer(whole, CONFIG), range(12))
    before = build_optimizer(broken, CONFIG, apex if first else None)
    train(broken, before, range(7))
    after = build_optimizer(broken, CONFIG, apex if then else None)
    after.load_state_dict(before.state_dict())
    if not then:
        assert all(group["fused"] for group in after.param_groups)
    found = train(broken, after, range(7, 12))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("max_norm", [1e-3, 1e3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_clipping_is_equal(apex, max_norm, dtype, tolerance):
    grads = [torch.randn(3, 4, dtype=dtype), None, torch.randn(7, dtype=dtype)]
    sets = [[nn.Parameter(torch.zeros(12, dtype=dtype)) for _ in grads] for _ in range(2)]
    for parameters in sets:
        for i, grad in enumerate(grads):
            if grad is not None:
                parameters[i] = nn.Parameter(torch.zeros_like(grad))
                parameters[i].grad = grad.clone()
    clip_gradients(iter(sets[0]), max_norm)
    clip_gradients(iter(sets[1]), max_norm, apex)
    for a, b, grad in zip(*sets, grads, strict=True):
        if grad is None:
            assert a.grad is b.grad is None
            continue
        torch.testing.assert_close(b.grad, a.grad, rtol=tolerance, atol=0)
        assert torch.equal(b.grad, grad) == (max_norm == 1e3)


def test_clipping_without_any_gradient_does_nothing(apex):
    clip_gradients([nn.Parameter(torch.ones(2))], 1.0, apex)
    clip_gradients([nn.Parameter(torch.ones(2))], 1.0)


class Never(types.ModuleType):
    """A module that must not even be looked into."""

    def __getattr__(self, name):
        raise AssertionError(f"{self.__name__}.{name} was asked for")


def test_the_package_of_that_name_on_pypi_is_ignored(monkeypatch):
    """Another project: it is not imported, as there are no kernels beside it."""
    install(monkeypatch)
    monkeypatch.setitem(sys.modules, "apex", Never("apex"))
    assert find_apex(GPU) is None


@pytest.mark.parametrize(
    ("missing", "warns"),
    [("amp_C", False), ("apex__optimizers", True), ("apex__multi_tensor_apply", True)],
)
def test_a_part_of_apex_is_none(monkeypatch, caplog, missing, warns):
    install(monkeypatch, **{name: what for name, what in BUILT.items() if name != missing})
    assert find_apex(GPU) is None
    assert ("cannot be used" in caplog.text) == warns


def test_kernels_without_a_norm_are_none(monkeypatch, caplog):
    install(monkeypatch, **BUILT | {"amp_C": {}})
    assert find_apex(GPU) is None
    assert "multi_tensor_l2norm" in caplog.text


def test_apex_is_for_gpus(apex):
    assert find_apex(torch.device("cpu")) is None
