# SPDX-License-Identifier: Apache-2.0
"""pipa_fast._host: the schedule of symmetric sweeps, the order of rows, and what was compiled."""

import platform
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import pipa_fast

_host = pytest.importorskip("pipa_fast._host")


@settings(deadline=None, max_examples=60)
@given(
    groups=st.integers(0, 40), seed=st.integers(0, 1000), share=st.sampled_from([0, 0.1, 0.6, 1])
)
def test_each_wanted_pair_is_visited_once_and_in_its_turn(groups, seed, share):
    wanted = np.random.default_rng(seed).random((groups, groups)) <= share
    visits = _host.schedule(groups, lambda a, b: bool(wanted[a, b]))
    pairs = [visit[:2] for visit in visits]
    expected = {(a, b) for a in range(groups) for b in range(a, groups) if wanted[a, b]}
    assert len(pairs) == len(set(pairs)) and set(pairs) == expected
    turns, rounds = [0] * groups, [-1] * groups
    for first, second, first_turn, second_turn, turn in visits:
        assert (turns[first], turns[second]) == (first_turn, second_turn)
        for group in {first, second}:
            turns[group] += 1
            assert turn > rounds[group]
            rounds[group] = turn
    assert [visit[4] for visit in visits] == sorted(visit[4] for visit in visits)


@pytest.mark.parametrize("blocks", [0, 1, 15, 33, 65, 86, 259, 1030])
def test_each_block_meets_all_others_in_the_same_order_at_any_number_of_threads(blocks):
    alone = _host.visited_pairs(blocks, 1)
    assert sorted(alone) == [(a, b) for a in range(blocks) for b in range(blocks)]
    assert _host.visited_pairs(blocks, 2) == _host.visited_pairs(blocks, 7) == alone


@pytest.mark.parametrize("groups", [2, 7, 12, 85, 86, 256])
def test_neighbouring_visits_share_no_group(groups):
    visits = _host.schedule(groups, lambda a, b: True)
    # A perfect schedule has a round for each group, of groups / 2 visits without a conflict.
    rounds = [set()]
    for first, second, *_ in visits:
        if rounds[-1] & {first, second}:
            rounds.append(set())
        rounds[-1] |= {first, second}
    assert len(rounds) <= 1.2 * groups + 2


@given(arrays(np.int64, st.integers(0, 200), elements=st.integers(-3, 3)), st.integers(-3, 3))
@settings(deadline=None)
def test_rows_are_sorted_by_class_and_stay_in_order(labels, ignored):
    check_order(labels, ignored)
    check_order(labels * 2**61, ignored * 2**61)  # too far apart for counting


def check_order(labels: np.ndarray, ignored: int) -> None:
    rows, start, classes = _host.order_by_class(labels.tolist(), ignored)
    kept = np.flatnonzero(labels != ignored)
    assert rows == kept[np.argsort(labels[kept], kind="stable")].tolist()
    unique, first = np.unique(labels[rows], return_index=True)
    assert classes == unique.tolist()
    assert start == [*first.tolist(), len(rows)]


def test_compiled_says_what_there_is():
    compiled = _host.compiled()
    assert compiled["version"] == pipa_fast.__version__, "rebuild the extensions"
    assert compiled["compiler"]
    assert "portable" in compiled["isa"]
    features = _host.cpu_features()
    assert features["portable"] and features[_host.best_isa()]
    if platform.machine() == "x86_64":
        names = ["portable_bf16", "portable", "avx2", "avx512", "avx512_bf16"]
        assert compiled["isa"] == names
        if platform.system() == "Linux":
            flags = Path("/proc/cpuinfo").read_text()
            assert features["avx2"] == (" avx2 " in flags and " fma " in flags)
            assert features["avx512"] == (" avx512dq " in flags and " avx512vl " in flags)
