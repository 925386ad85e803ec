# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from pipa_fast.data.random import generator, uniform

ITERATION = torch.tensor(7)


def draws(seed=0, stream="test", iteration=ITERATION, index=None, n=4):
    return uniform(seed, stream, iteration, torch.arange(8) if index is None else index, n)


def test_a_rows_numbers_are_its_own():
    """Whatever else is in the batch, in whatever order."""
    whole = draws()
    assert torch.equal(draws(index=torch.arange(8)[2:5]), whole[2:5])
    assert torch.equal(draws(index=torch.tensor([6, 1])), whole[[6, 1]])
    assert torch.equal(draws(n=2), whole[:, :2])


def test_every_argument_changes_every_number():
    whole = draws()
    others = [draws(seed=1), draws(stream="other"), draws(iteration=torch.tensor(8))]
    others.append(draws(index=torch.arange(8) + 8))
    for other in others:
        assert (other != whole).all()


def test_shape_dtype_and_range():
    values = draws(n=5)
    assert values.shape == (8, 5) and values.dtype == torch.float32
    assert (values >= 0).all() and (values < 1).all()
    assert draws(index=torch.arange(0)).shape == (0, 4)


@pytest.mark.parametrize("along", ["iteration", "index", "position"])
def test_uniform_and_uncorrelated_along(along):
    """Chi-square of single numbers and of neighbouring pairs, in 16 and 8 x 8 cells."""
    n = 4096
    if along == "index":
        values = draws(index=torch.arange(n), n=1).flatten()
    elif along == "position":
        values = draws(index=torch.arange(1), n=n).flatten()
    else:
        values = torch.cat([draws(iteration=torch.tensor(i), n=1) for i in range(n // 8)]).flatten()
    cells = torch.bincount((values * 16).long(), minlength=16).double()
    pairs = (values[:-1] * 8).long() * 8 + (values[1:] * 8).long()
    squares = torch.bincount(pairs, minlength=64).double()
    # 0.1 % of fair draws exceed these, of 15 and 63 degrees of freedom.
    assert ((cells - cells.mean()) ** 2 / cells.mean()).sum() < 37.7
    assert ((squares - squares.mean()) ** 2 / squares.mean()).sum() < 103.4


def test_the_host_generator_is_a_function_of_its_arguments():
    values = generator(1, "a", 2, 3).random(4)
    assert (generator(1, "a", 2, 3).random(4) == values).all()
    for other in [(2, "a", 2, 3), (1, "b", 2, 3), (1, "a", 3, 3), (1, "a", 2, 4), (1, "a", 3, 2)]:
        assert (generator(*other).random(4) != values).all()


def test_every_process_and_machine_draws_the_same():
    """Python's own hash of a string, say, differs from process to process."""
    assert generator(1, "a", 2, 3).integers(0, 2**32, 2).tolist() == [3508424453, 3684368415]
    found = uniform(1, "a", torch.tensor(2), torch.tensor([3, 900]), 2)
    assert (found * 2**24).tolist() == [[1956274.0, 10600501.0], [13801757.0, 6269097.0]]


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed must be a non-negative integer; got -1"):
        generator(-1, "a", 0, 0)
