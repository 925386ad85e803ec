# SPDX-License-Identifier: Apache-2.0
"""AdamW over the network's parameter groups."""

import logging

import torch

from pipa_fast.models import SegmentationNetwork
from pipa_fast.training.config import OptimizerConfig

logger = logging.getLogger(__name__)


def build_optimizer(network: SegmentationNetwork, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return AdamW in one fused kernel: apex's on a GPU where it is installed, else torch's."""
    groups = network.parameter_groups(
        lr=config.lr,
        weight_decay=config.weight_decay,
        head_lr_multiplier=config.head_lr_multiplier,
    )
    on_gpu = next(network.parameters()).is_cuda
    if on_gpu:
        try:
            # PyPI's `apex` is another project, without this module
            from apex.optimizers import FusedAdam  # pyright: ignore[reportMissingImports]
        except ImportError:
            logger.debug("apex.optimizers is not installed; using torch's fused AdamW")
        else:
            return FusedAdam(groups, lr=config.lr, betas=config.betas, adam_w_mode=True)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
