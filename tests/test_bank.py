# SPDX-License-Identifier: Apache-2.0
"""The ring of keys: order, wrap-around, blanks, and where its state goes."""

import copy

import pytest
import torch

from pipa_fast import ops
from pipa_fast.bank import FeatureBank


def keys(first, count, dim=3):
    """Keys that carry their number, which is their label too."""
    number = torch.arange(first, first + count)
    return number[:, None].expand(count, dim).float(), number


def test_wrap_around_is_exact():
    bank = FeatureBank(7, 3)
    ring: list[int] = [-1] * 7
    pushed = 0
    for count in (3, 0, 5, 7, 1, 20, 6, 14):
        bank.push(*keys(pushed, count))
        for number in range(pushed, pushed + count):
            ring[number % 7] = number
        pushed += count
        assert bank.labels.tolist() == ring
        filled = bank.labels >= 0
        assert torch.equal(bank.keys[filled], bank.labels[filled, None].expand(-1, 3).float())


def test_blanks_take_no_slot():
    bank = FeatureBank(5, 3)
    values, labels = keys(0, 9)
    labels = torch.where(labels % 3 == 0, -1, labels)  # 1 2 4 5 7 8 are left, the last five stay
    bank.push(values, labels)
    assert sorted(bank.labels.tolist()) == [2, 4, 5, 7, 8]
    assert torch.equal(bank.keys[:, 0], bank.labels.float())
    bank.push(values, torch.full_like(labels, -1))
    assert sorted(bank.labels.tolist()) == [2, 4, 5, 7, 8]


def test_unfilled_slots_are_no_negatives():
    bank = FeatureBank(50, 4)
    stored = torch.nn.functional.normalize(torch.randn(6, 4), dim=1)
    bank.push(stored.requires_grad_(), torch.arange(6) % 3)
    assert not bank.keys.requires_grad
    anchors, labels = stored.detach().flip(0), torch.arange(6) % 2
    loss = ops.patch_consistency(anchors, anchors, bank.keys, labels, bank.labels)
    expected = ops.patch_consistency(anchors, anchors, stored.detach(), labels, torch.arange(6) % 3)
    torch.testing.assert_close(loss, expected)


def test_state_dict_is_where_a_bank_goes_on():
    bank = FeatureBank(5, 3)
    bank.push(*keys(0, 8))
    module = torch.nn.ModuleDict({"bank": bank})
    state = copy.deepcopy(module.state_dict())
    assert {k: tuple(v.shape) for k, v in state.items()} == {
        "bank.keys": (5, 3), "bank.labels": (5,), "bank.pointer": (),
    }  # fmt: skip
    assert not list(module.buffers()) and not list(module.parameters())  # DDP broadcasts nothing
    other = torch.nn.ModuleDict({"bank": FeatureBank(5, 3)})
    other.load_state_dict(state)
    for one in (bank, other["bank"]):
        one.push(*keys(8, 3))
    assert torch.equal(other["bank"].keys, bank.keys)
    assert torch.equal(other["bank"].labels, bank.labels)
    # what was saved is a copy, and what does not fit is named
    assert state["bank.labels"].tolist() == [5, 6, 7, 3, 4]
    with pytest.raises(RuntimeError, match="bank.keys must be of shape"):
        torch.nn.ModuleDict({"bank": FeatureBank(6, 3)}).load_state_dict(state)
    del state["bank.pointer"]
    with pytest.raises(RuntimeError, match="bank.pointer"):
        other.load_state_dict(state)
    with pytest.raises(RuntimeError, match="more"):
        other.load_state_dict({**module.state_dict(), "bank.more": torch.zeros(())})


def test_moves_and_casts():
    bank = FeatureBank(5, 3).to(torch.bfloat16)
    assert bank.keys.dtype == torch.float32 and bank.labels.dtype == torch.int64
    bank.push(keys(0, 2)[0].to(torch.bfloat16), torch.tensor([1, 2], dtype=torch.uint8))
    assert bank.labels.tolist() == [1, 2, -1, -1, -1]
    assert FeatureBank(5, 3).to("meta").keys.is_meta
    moved = FeatureBank(5, 3).to("meta", torch.bfloat16).keys
    assert moved.is_meta and moved.dtype == torch.float32
    assert copy.deepcopy(bank).labels.tolist() == bank.labels.tolist()


def test_keys_are_float32_whatever_the_default_is():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # as while a network is built in bfloat16
    try:
        bank = FeatureBank(5, 3)
    finally:
        torch.set_default_dtype(before)
    assert bank.keys.dtype == torch.float32


def test_made_without_memory_and_filled_later():
    given = FeatureBank(5, 3)
    given.push(*keys(0, 7))
    with torch.device("meta"):
        bank = FeatureBank(5, 3)
    bank.to_empty(device="cpu").load_state_dict(given.state_dict())
    for filled in (bank, given):
        filled.push(*keys(7, 2))
    assert torch.equal(bank.keys, given.keys) and torch.equal(bank.labels, given.labels)


def test_made_without_memory_and_assigned():
    given = FeatureBank(5, 3)
    given.push(*keys(0, 7))
    with torch.device("meta"):
        bank = torch.nn.ModuleDict({"bank": FeatureBank(5, 3)})
    bank.load_state_dict({f"bank.{k}": v for k, v in given.state_dict().items()}, assign=True)
    for filled in (bank["bank"], given):
        filled.push(*keys(7, 2))
    assert torch.equal(bank["bank"].keys, given.keys)
    assert torch.equal(bank["bank"].labels, given.labels)


def test_all_of_it_is_shared():
    assert all(t.is_shared() for t in FeatureBank(5, 3).share_memory().state().values())


def test_compile():
    bank, eager = FeatureBank(5, 3), FeatureBank(5, 3)

    def step(values, labels):
        bank.push(values, labels)
        return bank.labels.clone()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for first in (0, 4, 8):
        eager.push(*keys(first, 4))
        assert torch.equal(compiled(*keys(first, 4)), eager.labels)
    assert torch.equal(bank.keys, eager.keys)


def test_bad_arguments():
    bad = (("capacity", (0, 3)), ("dim", (4, -1)), ("capacity", (2.5, 3)), ("dim", (4, True)))
    for name, args in bad:
        with pytest.raises(ValueError, match=name):
            FeatureBank(*args)
    bank = FeatureBank(5, 3)
    values, labels = keys(0, 4)
    for name, given in (
        ("keys", (values[:, :2], labels)),
        ("keys", (values.long(), labels)),
        ("labels", (values, labels.float())),
        ("keys", (values[:3], labels)),
    ):
        with pytest.raises(ValueError, match=name):
            bank.push(*given)
