# SPDX-License-Identifier: Apache-2.0
"""How long a scene of the embedded streets pair takes to render, on one thread.

python -m bench.streets_rendering            # milliseconds of the process, 100 scenes a style
"""

import statistics
import time
from typing import get_args

from pipa_fast.data.streets import Streets, StyleName

SCENES = 100


def main() -> None:
    """Render and print median and slowest."""
    for style in get_args(StyleName):
        scenes, times = Streets(style, "val"), []
        for index in range(SCENES):
            start = time.process_time()
            image, _, _ = scenes[index]
            times.append(1e3 * (time.process_time() - start))
        height, width, _ = image.shape
        print(
            f"{style}: {height} x {width}, median {statistics.median(times):.1f} ms, "
            f"slowest {max(times):.1f} ms of {SCENES}"
        )


if __name__ == "__main__":
    main()
