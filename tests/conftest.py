# SPDX-License-Identifier: Apache-2.0
"""One thread and fixed seeds for every test, here and in the processes that tests start."""

import os
import random

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # before torch is imported
os.environ.pop("PIPA_FAST_BACKEND", None)

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeds():
    """Every test draws the same numbers, whichever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
