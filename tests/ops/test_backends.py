# SPDX-License-Identifier: Apache-2.0
"""Who computes, why the others do not, and that an op's files are where its table says."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pipa_fast import ops

ROOT = Path(__file__).resolve().parents[2]
table = sys.modules["pipa_fast.ops.backends"]
NATIVE = ["pixel_contrast", "patch_consistency"]
ROOMS = {
    "triton": "kernels/{}.py",
    "cuda": "csrc/cuda/{}.cu",
    "cpu": "csrc/cpu/{}.cpp",
    "reference": "pipa_fast/reference/{}.py",
}


def rows(n=6, d=8, dtype=torch.float32):
    return F.normalize(torch.randn(n, d), dim=1).to(dtype)


LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def test_every_op_has_its_files():
    public = {path.stem for path in (ROOT / "pipa_fast/ops").glob("[!_]*.py")} - {"backends"}
    assert public == set(table.OPS) == set(ops.__all__) - {
        "backends", "backends_explained", "has_triton"
    }  # fmt: skip
    for op in public:
        assert (ROOT / f"tests/ops/test_{op}.py").exists(), op
        for backend, reason in ops.backends_explained(op, "cpu").items():
            if not reason.startswith("this version has no"):
                assert (ROOT / ROOMS[backend].format(op)).exists(), (op, backend)


def test_lists():
    for op in NATIVE:
        explained = ops.backends_explained(op, "cpu")
        assert list(explained) == ["triton", "cuda", "cpu", "reference"]
        assert ops.backends(op, torch.device("cpu")) == [k for k, v in explained.items() if not v]
        assert "reference" in ops.backends(op, "cpu")
        if not ops.has_triton():
            assert ops.backends(op, "cuda") == ["reference"]
        assert "cuda" in ops.backends_explained(op, "cuda")["cpu"]
    assert ops.backends("sample_anchors", "cpu") == ["reference"]
    with pytest.raises(ValueError, match="op must be one of"):
        ops.backends("softmax", "cpu")
    for device in ("tpu", None):
        with pytest.raises(
            ValueError, match=f"device must be a device or its name; got {device!r}"
        ):
            ops.backends("pixel_contrast", device)
    assert ops.has_triton() is False or torch.cuda.is_available()


def test_forced_backend_says_why_not():
    with pytest.raises(
        ValueError, match="'triton' cannot run pixel_contrast here: it runs on CUDA"
    ):
        ops.pixel_contrast(rows(), LABELS, backend="triton")
    with pytest.raises(ValueError, match="PIPA_FAST_BACKEND|backend must be one of .*'cpu'"):
        ops.pixel_contrast(rows(), LABELS, backend="gpu")


def test_environment_forces(monkeypatch):
    monkeypatch.setenv("PIPA_FAST_BACKEND", "cuda")
    with pytest.raises(ValueError, match="'cuda' cannot run pixel_contrast"):
        ops.pixel_contrast(rows(), LABELS)
    ops.pixel_contrast(rows(), LABELS, backend="reference")  # what is named goes first
    monkeypatch.setenv("PIPA_FAST_BACKEND", "fastest")
    with pytest.raises(ValueError, match="PIPA_FAST_BACKEND must be one of"):
        ops.pixel_contrast(rows(), LABELS)


def chosen(monkeypatch, *args, **settings):
    """Which backend the public function asks the op for."""
    seen = []
    choose = table.choose

    def spy(*given):
        seen.append(choose(*given))
        return seen[-1]

    monkeypatch.setattr(sys.modules["pipa_fast.ops.pixel_contrast"], "choose", spy)
    ops.pixel_contrast(*args, **settings)
    return seen[0]


@pytest.mark.skipif("cpu" not in ops.backends("pixel_contrast", "cpu"), reason="no extension")
def test_automatic_choice(monkeypatch, caplog):
    assert chosen(monkeypatch, rows(), LABELS) == "cpu"
    assert chosen(monkeypatch, rows(dtype=torch.bfloat16), LABELS, denominator="all") == "cpu"
    with caplog.at_level(logging.DEBUG, "pipa_fast.ops"):
        assert chosen(monkeypatch, rows(dtype=torch.float64), LABELS) == "reference"
    assert "not cpu: it computes in float32" in caplog.text
    assert chosen(monkeypatch, rows(), LABELS, temperature=0.02) == "reference"
    assert chosen(monkeypatch, rows(), LABELS, temperature=0.025) == "cpu"
    with pytest.raises(ValueError, match="'cpu' cannot run .*fixed shift"):
        ops.pixel_contrast(rows(), LABELS, backend="cpu", temperature=0.02)
    assert "a group is given" in table.cpu_why_not(table.Problem(group="0"))


def test_without_the_extension(monkeypatch):
    monkeypatch.setattr(table, "_EXTENSION", "the C++ extension does not load (no compiler)")
    assert ops.backends("pixel_contrast", "cpu") == ["reference"]
    assert "no compiler" in ops.backends_explained("patch_consistency", "cpu")["cpu"]
    assert ops.pixel_contrast(rows(), LABELS).isfinite()


def test_reasons_against_triton(monkeypatch):
    on_gpu = table.Problem("cuda", temperature=0.1)

    def reasons(package=True, gpu=True, capability=(9, 0), driver=True, problem=on_gpu):
        module = torch.utils._triton
        monkeypatch.setattr(module, "has_triton_package", lambda: package)
        monkeypatch.setattr(module, "has_triton", lambda: driver)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        return table.triton_why_not(problem)

    assert reasons() == ""
    assert "on cpu" in reasons(problem=table.Problem("cpu"))
    assert "not installed" in reasons(package=False)
    assert "no GPU" in reasons(gpu=False)
    assert "8.0 or more, and this GPU has 7.5" in reasons(capability=(7, 5))
    assert "no driver" in reasons(driver=False)
    assert "fixed shift" in reasons(problem=on_gpu._replace(temperature=0.02))
    assert "float64" in reasons(problem=on_gpu._replace(dtype=torch.float64))
    assert "group" in reasons(problem=on_gpu._replace(group="0"))


def test_import_needs_no_triton():
    code = (
        "import sys; sys.modules['triton'] = None; import pipa_fast.ops as o; print(o.has_triton())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    loaded = "import sys, pipa_fast.ops; print('pipa_fast.kernels' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", loaded], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False", "kernels are imported when they are first called"
