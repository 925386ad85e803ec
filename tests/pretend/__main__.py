# SPDX-License-Identifier: Apache-2.0
"""Runs a module on a GPU that is none, or a script.

python -m tests.pretend pytest tests/training/test_gpu.py
python -m tests.pretend pipa_fast.train --config streets_pipa --device cuda --iterations 4
"""

import runpy
import sys

from tests.pretend.gpu import build, start

if __name__ == "__main__":
    start(build())
    sys.argv = sys.argv[1:]
    if sys.argv[0].endswith(".py"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
