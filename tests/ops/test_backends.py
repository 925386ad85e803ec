# SPDX-License-Identifier: Apache-2.0
"""Who computes, why the others do not, and that an op's files are where its table says."""

import functools
import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

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
    for room in ("pipa_fast/reference", "kernels"):
        assert {path.stem for path in (ROOT / room).glob("[!_]*.py")} <= public
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


def test_without_the_extension(monkeypatch):
    monkeypatch.setattr(table, "_EXTENSION", "the C++ extension does not load (no compiler)")
    assert ops.backends("pixel_contrast", "cpu") == ["reference"]
    assert "no compiler" in ops.backends_explained("patch_consistency", "cpu")["cpu"]
    assert ops.pixel_contrast(rows(), LABELS).isfinite()


def test_reasons_against_triton(monkeypatch):
    on_gpu = table.Problem(torch.device("cuda"), temperature=0.1)

    def reasons(package=True, gpu=True, hip=None, capability=(9, 0), driver=True, problem=on_gpu):
        module = torch.utils._triton
        monkeypatch.setattr(module, "has_triton_package", lambda: package)
        monkeypatch.setattr(module, "has_triton", lambda: driver)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        return table.triton_why_not(problem)

    assert reasons() == ""
    assert "on cpu" in reasons(problem=table.Problem(torch.device("cpu")))
    assert "not installed" in reasons(package=False)
    assert "no GPU" in reasons(gpu=False)
    assert "this torch is for AMD's" in reasons(hip="6.4", capability=(9, 4))
    assert "8.0 or more, and this GPU has 7.5" in reasons(capability=(7, 5))
    assert "no driver" in reasons(driver=False)
    assert "fixed shift" in reasons(problem=on_gpu._replace(temperature=0.02))
    assert "float64" in reasons(problem=on_gpu._replace(dtype=torch.float64))


def stand_in_for_cuda(monkeypatch, capability=(9, 0), why_not="", **compiled):
    """An extension for sm_80 and sm_90, and a GPU of 8.0 or more."""
    compiled = {"archs": "80 90", "ptx": "90", "runtime": 13000, "driver": 12040} | compiled
    module = SimpleNamespace(why_not=lambda: why_not, compiled=lambda: compiled)
    monkeypatch.setitem(sys.modules, "pipa_fast._CUDA", module)
    monkeypatch.setattr(table, "_gpu_missing", lambda _: "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "GPU 1")


def test_reasons_against_cuda(monkeypatch):
    on_gpu = table.Problem(torch.device("cuda"))

    def reason(problem=on_gpu, **stand_in):
        stand_in_for_cuda(monkeypatch, **stand_in)
        return table.cuda_why_not(problem)

    assert reason() == reason(capability=(8, 9)) == reason(capability=(10, 0)) == ""
    assert reason(archs="80 90a", ptx="") == reason(archs="100", capability=(10, 3)) == ""
    for capability in ((9, 1), (10, 0)):
        found = reason(archs="80 90a", ptx="", capability=capability)
        assert "sm_80, sm_90a, and this GPU has" in found and "PIPA_FAST_CUDA_ARCHS" in found
    assert "this GPU has 8.0" in reason(archs="86 90", capability=(8, 0))
    found = reason(why_not="driver is insufficient")
    assert "(it is of CUDA 13.0, the driver of 12.4): driver is insufficient" in found
    assert "float64" in reason(on_gpu._replace(dtype=torch.float64))
    monkeypatch.setitem(sys.modules, "pipa_fast._CUDA", None)
    assert "PIPA_FAST_CUDA=1" in table.cuda_why_not(on_gpu)


def test_the_gpu_that_holds_the_tensors_is_asked_not_the_current_one(monkeypatch):
    gpu_missing, capabilities = table._gpu_missing, [(8, 0), (7, 5), (9, 0)]
    stand_in_for_cuda(monkeypatch, archs="80", ptx="")
    monkeypatch.setattr(table, "_gpu_missing", gpu_missing)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(table, "has_triton", lambda: True)
    current = torch.device("cuda", 0)
    monkeypatch.setattr(
        torch.cuda,
        "get_device_capability",
        lambda device=current: capabilities[device.index or 0],
    )
    for name, reason in (
        ("cuda", ""),
        ("cuda:0", ""),
        ("cuda:1", "has 7.5"),
        ("cuda:2", "has 9.0"),
    ):
        found = ops.backends_explained("pixel_contrast", name)["cuda"]
        assert reason in found and bool(reason) == bool(found)


def two(cuda):
    """A table whose first line says why it cannot run."""
    lines = (("cuda", cuda), ("reference", lambda _: ""))
    return tuple(table.Backend(name, why, table.absent, table.absent) for name, why in lines)


@pytest.mark.parametrize("compiles", [False, True])
def test_a_driver_that_is_too_old_is_told_once(monkeypatch, caplog, compiles):
    stand_in_for_cuda(monkeypatch, why_not="driver is insufficient")
    monkeypatch.setattr(table, "_warn_once", functools.cache(table._warn_once.__wrapped__))
    lines, problem = two(table.cuda_why_not), table.Problem(torch.device("cuda"))

    def choose(x):
        return x if table.choose("pixel_contrast", lines, problem, None) == "reference" else -x

    if compiles:
        choose = torch.compile(choose, fullgraph=True, backend="eager")
    for _ in range(3):
        assert choose(torch.ones(())) == 1
    told = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(told) == 1 and "the driver of 12.4): driver is insufficient" in told[0].message
    with pytest.raises(ValueError, match="'cuda' cannot run pixel_contrast here: its CUDA runtime"):
        table.choose("pixel_contrast", lines, problem, "cuda")


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Backends of rows by size, as made-up results have them."""
    file = tmp_path / "fastest.json"
    common = {"op": "pixel_contrast", "chip": "GPU 1", "dtype": "bfloat16"}
    sizes = {(64, 1000): "cuda", (256, 1000): "cuda", (256, 2000): "triton", (256, 9000): "cuda"}
    made = [common | {"d": d, "n": n, "backend": name} for (d, n), name in sizes.items()]
    file.write_text(json.dumps(made[::-1]))
    monkeypatch.setattr(table._fastest, "FILE", file)
    for cached in (table._fastest.rows, table._fastest.measured):
        cached.cache_clear()
    yield
    monkeypatch.undo()
    for cached in (table._fastest.rows, table._fastest.measured):
        cached.cache_clear()


def test_the_faster_backend_of_a_size_goes_first(monkeypatch, measured):
    stand_in_for_cuda(monkeypatch)
    can, cannot = (lambda _: ""), (lambda _: "no")
    bf16 = table.Problem(torch.device("cuda"), torch.bfloat16, 256)

    def choice(problem, requested=None, cuda=can):
        lines = tuple(
            table.Backend(name, why_not, table.absent, table.absent)
            for name, why_not in (("triton", can), ("cuda", cuda), ("reference", can))
        )
        return table.choose("pixel_contrast", lines, problem, requested)

    names = [
        choice(bf16._replace(rows=n)) for n in (499, 500, 1413, 1414, 3999, 4500, 17999, 18000)
    ]
    assert names == ["triton", "cuda", "cuda", *["triton"] * 2, "cuda", "cuda", "triton"]
    widths = [choice(bf16._replace(rows=1000, dim=d)) for d in (1, 64, 65, 128, 129, 256, 257)]
    assert widths == ["cuda", "cuda", "triton", "triton", "cuda", "cuda", "triton"]
    here = bf16._replace(rows=1000)
    assert choice(here, "triton") == choice(here, cuda=cannot) == "triton"
    assert choice(here._replace(dtype=torch.float16)) == "triton"
    assert choice(here._replace(device=torch.device("cpu"))) == "triton"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "GPU 2")
    assert choice(here) == "triton"


def test_the_faster_backend_is_chosen_in_compiled_code(monkeypatch, measured):
    stand_in_for_cuda(monkeypatch)
    lines = two(lambda _: "")[::-1]

    @functools.partial(torch.compile, fullgraph=True, backend="eager", dynamic=True)
    def choose(x):
        problem = table.Problem(torch.device("cuda"), torch.bfloat16, 256, 0.1, x.shape[0])
        return x.sum() * (table.choose("pixel_contrast", lines, problem, None) == "cuda")

    assert [int(choose(torch.ones(n))) for n in (1000, 1100, 2000, 9000)] == [1000, 1100, 0, 9000]


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
