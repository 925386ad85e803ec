# SPDX-License-Identifier: Apache-2.0
"""AdamW over the network's parameter groups, and clipping: torch's, or NVIDIA apex's on a GPU."""

import importlib
import importlib.util
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipa_fast.models import SegmentationNetwork
from pipa_fast.training.config import OptimizerConfig

logger = logging.getLogger(__name__)


class Apex(NamedTuple):
    """What is used of an NVIDIA apex that was built from source with its CUDA extensions."""

    fused_adam: type[torch.optim.Optimizer]  # apex.optimizers.FusedAdam
    apply: Callable[..., Any]  # apex.multi_tensor_apply.multi_tensor_applier
    l2norm: Callable[..., Any]  # amp_C.multi_tensor_l2norm


def find_apex(device: torch.device) -> Apex | None:
    """Return apex where `device` is a GPU and apex has all that is used of it, else None.

    The package `apex` on PyPI is another project, and is not even imported: it has no `amp_C`, the
    module of kernels, which a build of NVIDIA's without CUDA extensions lacks too.
    """
    if device.type != "cuda" or importlib.util.find_spec("amp_C") is None:
        return None
    try:
        l2norm = importlib.import_module("amp_C").multi_tensor_l2norm
        apply = importlib.import_module("apex.multi_tensor_apply").multi_tensor_applier
        adam = importlib.import_module("apex.optimizers").FusedAdam
    except (ImportError, AttributeError) as error:  # built for another torch, or in parts
        logger.warning("apex is there but cannot be used, torch's AdamW is: %s", error)
        return None
    return Apex(adam, apply, l2norm) if apply.available else None


def build_optimizer(
    network: SegmentationNetwork, config: OptimizerConfig, apex: Apex | None = None
) -> torch.optim.Optimizer:
    """Return AdamW in fused kernels: apex's if given, else torch's. Their states are alike."""
    groups = network.parameter_groups(
        lr=config.lr,
        weight_decay=config.weight_decay,
        head_lr_multiplier=config.head_lr_multiplier,
    )
    if apex is None:
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
    # FusedAdam takes no notice of "fused"; torch's AdamW finds it in a checkpoint of this one.
    groups = [group | {"fused": True} for group in groups]
    fused_adamw = _counting_each(apex.fused_adam)
    return fused_adamw(groups, lr=config.lr, betas=config.betas, eps=1e-8, adam_w_mode=True)


def clip_gradients(
    parameters: Iterable[nn.Parameter], max_norm: float, apex: Apex | None = None
) -> None:
    """Scale all gradients by one factor, so that the norm of all together is at most `max_norm`.

    The norm is computed by apex's kernel if given. The scaling is torch's in any case, as fused:
    apex's multi_tensor_scale takes the factor from the host, so that a step would wait for it.
    """
    parameters = [p for p in parameters if p.grad is not None]
    if apex is None or not parameters:
        nn.utils.clip_grad_norm_(parameters, max_norm)
        return
    gradients = [p.grad for p in parameters]
    overflow = torch.zeros(1, dtype=torch.int32, device=parameters[0].device)  # is not read
    norm: Tensor = apex.apply(apex.l2norm, overflow, [gradients], False)[0].squeeze()
    nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)


def _counting_each(fused_adam: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """Return apex's FusedAdam with torch's state: a count of steps for each parameter.

    FusedAdam counts the steps of a group. A projection head whose loss starts late would have the
    bias correction of a late step on moments of none, and its first updates three times too large.
    """

    class FusedAdamW(fused_adam):  # type: ignore[misc, valid-type]
        def step(self, closure: None = None) -> None:
            whole = self.param_groups
            try:
                for group in whole:
                    for count, parameters in self._by_count(group).items():
                        self.param_groups = [group | {"params": parameters, "step": count}]
                        # FusedAdam walks these beside the groups; it keeps copies of parameters
                        # there only with master_weights=True.
                        self.param_groups_master = [{"params": [None] * len(parameters)}]
                        super().step()
                        for parameter in parameters:
                            self.state[parameter]["step"] = count + 1
            finally:
                self.param_groups = whole

        def _by_count(self, group: dict[str, Any]) -> dict[int, list[nn.Parameter]]:
            found: dict[int, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    found[self.state[parameter].get("step", 0)].append(parameter)
            return found

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            super().load_state_dict(state_dict)
            for group in self.param_groups:  # those of torch's AdamW have no bias_correction
                for name, value in self.defaults.items():
                    group.setdefault(name, value)
            for state in self.state.values():
                state["step"] = int(state["step"])  # torch's is a tensor

    return FusedAdamW
