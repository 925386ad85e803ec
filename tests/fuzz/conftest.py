# SPDX-License-Identifier: Apache-2.0
"""How many cases run, and how many did: `pytest tests/fuzz --fuzz 100000`, or `make fuzz`."""

import faulthandler
import random
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

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
CHUNK = 1000  # what hypothesis remembers of more slows it down
HANG = 120  # s for a case, after which the process says where it is, and ends


@pytest.fixture
def fuzz(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Call a property with a name's share of the cases, and count them."""
    anew = request.config.getoption("fuzz_anew")
    # Without --fuzz-anew the same cases are drawn every time.
    first = random.SystemRandom().randrange(2**32) if anew else 0

    def run(name: str, cases: Any, property: Callable[[Any], None]) -> None:
        wanted = max(1, request.config.getoption("fuzz") * SHARES[name] // 100)
        count = 0

        def call(case: Any) -> None:
            nonlocal count
            faulthandler.dump_traceback_later(HANG, exit=True, file=sys.__stderr__)
            count += 1
            property(case)

        try:
            for start in range(0, wanted, CHUNK):
                drawn = settings(
                    max_examples=min(CHUNK, wanted - start),
                    database=None,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                    phases=(Phase.generate, Phase.shrink),
                )
                seed(first + start)(drawn(given(cases)(call)))()
        finally:
            faulthandler.cancel_dump_traceback_later()
            request.node.user_properties.append(("fuzz", (name, count)))

    return run
