# SPDX-License-Identifier: Apache-2.0
"""The report and the comparison in a real browser: whole, readable, light and dark."""

import os
from pathlib import Path

import numpy as np
import pytest

from pipa_fast.evaluation.comparison import grouped
from pipa_fast.evaluation.comparison_page import Pictures, page
from pipa_fast.evaluation.runs import read_run
from tests.browser import SIZES, browser, look

# Where to keep pictures for a person to look at: PICTURES=folder make browser
KEPT = os.environ.get("PICTURES")


@pytest.fixture(scope="module")
def opened():
    with browser() as found:
        yield found


@pytest.fixture
def comparison(tmp_path, make_run):
    rng = np.random.default_rng(0)
    names = ["streets_source", "streets_pipa", "a_rather_long_name_of_a_run_with_a_seed_1"]
    groups = grouped([read_run(make_run(n, 30.0 + 5 * i)) for i, n in enumerate(names)])
    maps = {n: rng.integers(0, 19, (24, 48), dtype=np.uint8) for n in names}
    image = rng.integers(0, 255, (24, 48, 3), dtype=np.uint8)
    path = tmp_path / "comparison.html"
    path.write_text(page(groups, [Pictures("scene", image, maps[names[0]], maps)]))
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("what", ["full", "comparison"])
def test_a_page_is_whole_and_readable(opened, request, what, size, scheme):
    path = request.getfixturevalue(what)
    picture = Path(KEPT) / f"{what}_{size}_{scheme}.png" if KEPT else None
    texts = look(opened, path, size, scheme, picture)
    assert len(texts) > 50
    width = SIZES[size][0]
    for text in texts:
        assert text["left"] >= 0 and text["right"] <= min(width, text["room"]) + 0.5, text
        assert text["size"] >= 10, text
        assert text["contrast"] >= 4.5, text
