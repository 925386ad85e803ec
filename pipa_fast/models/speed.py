# SPDX-License-Identifier: Apache-2.0
"""Settings that change how a network is computed, not what."""

import torch
from torch import nn

from pipa_fast.models.config import ModelConfig


def speed_up(network: nn.Module, config: ModelConfig) -> None:
    """Lay out and compile a network of an `encoder` and a `head` as `config` says, in place.

    Names in its state dict stay. A copy keeps the layout but is not compiled: call this on it too.
    """
    if config.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.compile:
        for name in ("encoder", "head"):
            network.get_submodule(name).compile()
