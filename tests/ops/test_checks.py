# SPDX-License-Identifier: Apache-2.0
"""What just passes each check that the ops share, and what just does not."""

import math

import pytest
import torch

from pipa_fast.ops import _checks

ROWS, MAP = torch.zeros(2, 3), torch.zeros(2, 3, 4, 5)
SPARSE, LABELS = ROWS.to_sparse(), torch.zeros(2, 3, dtype=torch.uint8)


def partial(name, *others, **settings):
    return lambda argument, value: getattr(_checks, name)(argument, value, *others, **settings)


CHECKS = {
    "temperature": (
        lambda argument, value: _checks.check_temperature(value, argument),
        (1, 1e-300),
        (0, -1, 0.0, math.inf, math.nan, True, "1", None),
    ),
    "share": (partial("check_share"), (0, 1, 0.5), (-1e-9, 1 + 1e-9, math.nan, True, None)),
    "count": (partial("check_count"), (0, 2**40), (-1, 1.0, True, None)),
    "count of some": (partial("check_count", least=2), (2,), (1,)),
    "label": (
        partial("check_label"),
        (-(2**63), 2**63 - 1),
        (-(2**63) - 1, 2**63, True, 1.0, None),
    ),
    "rows": (
        partial("check_rows"),
        (ROWS[:, :1], ROWS[:0], torch.zeros(1, 512), ROWS.double(), ROWS.half(), ROWS.bfloat16()),
        (ROWS[:, :0], torch.zeros(1, 513), ROWS[0], MAP, ROWS.long(), SPARSE, None),
    ),
    "map": (
        partial("check_feature_map"),
        (MAP, MAP[:, :1], MAP[:0], torch.zeros(1, 512, 1, 1)),
        (MAP[:, :0], torch.zeros(1, 513, 1, 1), MAP[0], MAP.int(), MAP.to_sparse(), None),
    ),
    "like": (
        partial("check_like", "features", ROWS),
        (MAP,),
        (MAP.half(), MAP.to("meta")),
    ),
    "shape": (partial("check_shape", (2, 3)), (ROWS,), (ROWS.T, ROWS[0], (2, 3))),
    "rank": (partial("check_rank", "N D"), (ROWS, SPARSE), (ROWS[0], MAP, [[1.0]])),
    "integer": (
        partial("check_integer"),
        (LABELS, LABELS.short()),
        (LABELS.bool(), ROWS, ROWS.to(torch.complex64), SPARSE.int(), 1),
    ),
    "integers": (
        partial("integers", ROWS, (2, 3)),
        (LABELS,),
        (LABELS.T, LABELS.to("meta"), ROWS),
    ),
    "constant": (partial("check_constant"), (ROWS,), (torch.zeros(1, requires_grad=True),)),
    "weights": (
        lambda argument, value: _checks.pixel_weights(value, ROWS, (2, 3)),
        (ROWS, LABELS.bool(), None),
        (
            ROWS.to(torch.complex64),
            ROWS.T,
            ROWS.to("meta"),
            SPARSE,
            torch.zeros(2, 3, requires_grad=True),
        ),
    ),
}


@pytest.mark.parametrize("name", CHECKS)
def test_what_fits_passes_and_what_does_not_is_named(name):
    check, good, bad = CHECKS[name]
    for value in good:
        check("weights", value)
    for value in bad:
        with pytest.raises(ValueError, match=r"^weights must be .*; got "):
            check("weights", value)


def test_what_checks_return():
    temperature = _checks.check_temperature(2)
    assert temperature == 2 and isinstance(temperature, float)
    assert _checks.integers("labels", LABELS, ROWS, (2, 3)).dtype == torch.int64
    assert _checks.pixel_weights(LABELS, ROWS.double(), (2, 3)).dtype == torch.float64
    assert _checks.pixel_weights(None, ROWS, (2, 3)) is None
    assert _checks.group_name(None) == ""


def test_values_that_do_not_fit_are_told():
    _checks.check_values("labels", torch.tensor(True), "below 3")
    with pytest.raises(ValueError, match=r"^labels must be below 3$"):
        _checks.check_values("labels", torch.tensor(False), "below 3")


@pytest.mark.parametrize("group", ["of nobody", 3])
def test_a_group_that_is_none_is_told(group):
    with pytest.raises(ValueError, match=r"^group must be a process group, .*; got "):
        _checks.group_name(group)
