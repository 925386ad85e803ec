# SPDX-License-Identifier: Apache-2.0
"""One thread, fixed seeds, and Triton's interpreter where there is no GPU, for every test."""

import json
import os
import random
import shutil
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # before torch is imported
os.environ.pop("PIPA_FAST_BACKEND", None)

import numpy as np
import pytest
import torch
import yaml

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported: kernels run on the CPU
torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--fuzz", type=int, default=2000, help="cases of tests/fuzz, of all ops")
    parser.addoption("--fuzz-anew", action="store_true", help="draw other cases each time")


def pytest_terminal_summary(terminalreporter):
    """Tell how many cases tests/fuzz has run, of each op and in all."""
    reports = [r for found in terminalreporter.stats.values() for r in found]
    calls = [r for r in reports if getattr(r, "when", "") == "call"]
    counts = [value for r in calls for key, value in r.user_properties if key == "fuzz"]
    for name, count in counts:
        terminalreporter.write_line(f"fuzz: {count:7d} cases of {name}")
    if counts:
        terminalreporter.write_line(f"fuzz: {sum(n for _, n in counts):7d} cases in all")


@pytest.fixture(autouse=True)
def seeds():
    """Every test draws the same numbers, whichever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def emulator(tmp_path_factory):
    """The CUDA C++ kernels, compiled for this CPU."""
    from tests.csrc.cuda_emulated import Emulated, build

    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    return Emulated(build(tmp_path_factory.getbasetemp().parent))


@pytest.fixture
def few_scenes(monkeypatch):
    """Training sees two scenes of each dataset: the loop is tested, not the streets."""
    from pipa_fast.data import loader
    from tests.few import Few

    monkeypatch.setattr(loader, "build_dataset", Few)


@pytest.fixture
def make_run(tmp_path: Path):
    def make(name: str, miou: float = 40.0, **config) -> Path:
        """Write the folder of a finished run."""
        folder = tmp_path / name
        folder.mkdir()
        iou = {"road": miou + 20, "car": miou, "sky": miou - 20}
        results = {"miou": miou, "iou": iou, "recipe": name, "iteration": 300, "seed": 3}
        history = [
            {"kind": "train", "iteration": 100 * i, "loss": {"source": 2.0 / i, "pixel": 3.0}}
            | {"lr": 1e-3, "images_per_second": float("nan") if i == 1 else 50.0}
            for i in (1, 2, 3)
        ]
        history.append({"kind": "eval", "iteration": 300, "miou": miou, "iou": iou})
        settings = {"recipe": name, "seed": 3, "data": {"target": "<b>streets</b>"}, **config}
        (folder / "results.json").write_text(json.dumps(results))
        (folder / "history.jsonl").write_text("".join(json.dumps(r) + "\n" for r in history))
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        return folder

    return make
