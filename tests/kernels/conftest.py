# SPDX-License-Identifier: Apache-2.0
"""Where kernels run: on the GPU, or else in Triton's interpreter, which tests/conftest.py chose."""

import os

import pytest
import torch


@pytest.fixture(scope="session")
def device():
    """Where tensors of these tests lie."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        return torch.device("cuda")
    assert os.environ["TRITON_INTERPRET"] == "1"
    return torch.device("cpu")
