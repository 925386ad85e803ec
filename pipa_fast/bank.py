# SPDX-License-Identifier: Apache-2.0
"""Keys of earlier steps, to compare with."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pipa_fast.checks import require
from pipa_fast.ops._checks import check_count, check_float, check_rank, check_shape, integers


class FeatureBank(nn.Module):
    """A ring of detached keys [capacity, dim] and their labels [capacity].

    Slots not filled yet are labelled -1, which `ops.patch_consistency` passes over. The content is
    in the state dict, but it is no buffer: DDP broadcasts buffers, and what a bank holds is for
    those who push to it to agree on (`losses.PatchConsistencyLoss` pushes the same keys on every
    rank). Nothing here waits for the device.

    Args:
        capacity: number of keys, at least 1.
        dim: their width, at least 1.
    """

    def __init__(self, capacity: int, dim: int) -> None:
        super().__init__()
        check_count("capacity", capacity, least=1)
        check_count("dim", dim, least=1)
        self.capacity, self.dim = capacity, dim
        # One row more than there are slots takes what is not to be kept.
        self._keys = torch.zeros(capacity + 1, dim, dtype=torch.float32)
        self._labels = torch.full((capacity + 1,), -1, dtype=torch.int64)
        self._pointer = torch.zeros((), dtype=torch.int64)

    @property
    def keys(self) -> Tensor:
        """The stored keys [capacity, dim] float32."""
        return self._keys[: self.capacity]

    @property
    def labels(self) -> Tensor:
        """The labels [capacity] int64 of the stored keys; -1 where there is none."""
        return self._labels[: self.capacity]

    @torch.no_grad()
    def push(self, keys: Tensor, labels: Tensor) -> None:
        """Store keys [N, dim] with labels [N] over the oldest ones; negative labels are left out.

        Of more keys than there are slots, the last are kept. Raises ValueError for a shape, dtype
        or device that does not fit.
        """
        check_float("keys", keys)
        check_rank("labels", labels, "N")
        check_shape("keys", keys, (labels.shape[0], self.dim))
        labels = integers("labels", labels, keys, (keys.shape[0],))
        require(keys.device == self._keys.device, "keys", str(keys.device), "on the bank's device")
        kept = labels >= 0
        order = kept.cumsum(0) - 1
        count = kept.sum()
        kept = kept & (order >= count - self.capacity)
        slot = torch.where(kept, (self._pointer + order) % self.capacity, self.capacity)
        self._keys.index_copy_(0, slot, keys.detach().to(self._keys.dtype))
        self._labels.index_copy_(0, slot, labels)
        self._pointer.copy_((self._pointer + count) % self.capacity)

    def extra_repr(self) -> str:
        """Say how large the bank is."""
        return f"capacity={self.capacity}, dim={self.dim}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FeatureBank":
        """Follow the module to a device. Keys stay float32, whatever the module becomes."""
        super()._apply(fn, recurse)
        self._keys, self._labels, self._pointer = (
            _moved(t, fn) for t in (self._keys, self._labels, self._pointer)
        )
        return self

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, value in self.state().items():
            destination[prefix + name] = value.clone()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        keys = state_dict.get(prefix + "keys")
        assign = local_metadata.get("assign_to_params_buffers", False)
        if assign and keys is not None and keys.device != self._keys.device:
            # load_state_dict(assign=True) takes it to where the state is, off the meta device.
            self._apply(lambda own: torch.empty_like(own, device=keys.device))
        for name, own in self.state().items():
            given = state_dict.get(prefix + name)
            if given is None:
                missing_keys.append(prefix + name)
            elif given.shape != own.shape:
                error_msgs.append(
                    f"{prefix + name} must be of shape {list(own.shape)}; got {list(given.shape)}"
                )
            else:
                own.copy_(given)
        expected = {prefix + name for name in self.state()}
        unexpected_keys += [k for k in state_dict if k.startswith(prefix) and k not in expected]

    def state(self) -> dict[str, Tensor]:
        """Return what the bank holds by name, as it lies: to write there changes the bank."""
        return {"keys": self.keys, "labels": self.labels, "pointer": self._pointer}


def _moved(tensor: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what `fn` makes of a tensor; where that is a cast, only the device changes.

    `fn` may share memory or leave the meta device, of which there is nothing to copy.
    """
    made = fn(tensor)
    return made if made.dtype == tensor.dtype else tensor.to(made.device)
