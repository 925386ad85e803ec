# SPDX-License-Identifier: Apache-2.0
"""How many cases run, and how many did: `pytest tests/fuzz --fuzz 100000`, or `make fuzz`."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

# Shares of all cases, in percent.
SHARES = {
    "pixel_contrast": 26,
    "patch_consistency": 20,
    "upsampled_cross_entropy": 15,
    "pseudo_labels": 8,
    "sample_anchors": 9,
    "gather_pixels": 6,
    "overlap_pairs": 6,
    "downscale_labels": 5,
    "feature_bank": 2,
    "pixel_contrast_loss": 2,
    "patch_consistency_loss": 1,
}


@pytest.fixture
def fuzz(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Call a property with a name's share of the cases, and count them."""

    def run(name: str, cases: Any, property: Callable[[Any], None]) -> None:
        total = request.config.getoption("fuzz")
        count = 0

        # Without --fuzz the same cases are drawn every time.
        @settings(
            max_examples=max(1, total * SHARES[name] // 100),
            derandomize=not request.config.getoption("fuzz_anew"),
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        )
        @given(cases)
        def call(case: Any) -> None:
            nonlocal count
            count += 1
            property(case)

        try:
            call()
        finally:
            request.node.user_properties.append(("fuzz", (name, count)))

    return run
