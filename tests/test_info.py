# SPDX-License-Identifier: Apache-2.0
"""python -m pipa_fast.info: says what can run, and why the rest cannot."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

import pipa_fast
from pipa_fast import info
from pipa_fast.ops.backends import OPS, backends


def test_plain_text_off_a_terminal():
    result = subprocess.run(
        [sys.executable, "-m", "pipa_fast.info"], capture_output=True, text=True, check=True
    )
    text = result.stdout
    assert "\x1b" not in text and "│" not in text
    assert f"pipa_fast     {pipa_fast.__version__}" in text
    for title in ("# versions", "# machine", "# native extensions", "# backends"):
        assert title in text
    for op in OPS:
        assert op in text


def test_every_op_has_a_backend_that_runs_and_reasons_for_the_rest():
    rows = info.backends()
    for op in OPS:
        for device in info.devices():
            usable = [b for o, d, b, reason in rows if (o, d) == (op, device) and not reason]
            assert usable == backends(op, device) and usable
    assert all(isinstance(reason, str) for *_, reason in rows)


def test_missing_extensions_are_explained(monkeypatch):
    names = {f"pipa_fast.{module}" for module in ("_C", "_host", "_CUDA")}
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)  # import raises
    found = info.extensions()
    assert set(found) == names
    assert all(value.startswith("absent: ") for value in found.values())
    assert "CPU" not in info.machine()


def test_extensions_of_another_version_are_told(monkeypatch):
    pytest.importorskip("pipa_fast._host")
    assert info.extensions()["pipa_fast._host"] == "loaded"
    monkeypatch.setattr(pipa_fast, "__version__", "9.9.9")
    assert "--no-build-isolation" in info.extensions()["pipa_fast._host"]


def test_what_the_cuda_kernels_were_compiled_for_is_told(monkeypatch):
    compiled = {
        "version": pipa_fast.__version__,
        "archs": "80 90a",
        "ptx": "",
        "numbers": "bfloat16 tf32x3",
        "widths": "128 256",
        "runtime": 13000,
        "driver": 12040,
    }
    module = SimpleNamespace(compiled=lambda: compiled, why_not=lambda: "driver is insufficient")
    monkeypatch.setitem(sys.modules, "pipa_fast._CUDA", module)
    found = info.extensions()
    assert found["pipa_fast._CUDA"] == "loaded"
    assert found["CUDA architectures"] == "sm_80, sm_90a"
    assert found["CUDA numbers"] == "bfloat16, tf32x3"
    assert found["CUDA widths"] == "rows of up to 128, 256 bytes"
    assert found["CUDA runtime"] == "13.0; driver 12.4: driver is insufficient"
    compiled |= {"version": "0.0.1", "ptx": "90", "driver": 0}
    found = info.extensions()
    assert "built for 0.0.1" in found["pipa_fast._CUDA"]
    assert found["CUDA architectures"] == "sm_80, sm_90a, PTX of 90 for newer ones"
    assert "driver none" in found["CUDA runtime"]


def test_absent_library(monkeypatch):
    monkeypatch.setattr(info, "LIBRARIES", ("no-such-library",))
    assert info.versions()["no-such-library"] == "absent"


def test_tables_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    info.main([])
    out = capsys.readouterr().out
    assert "backends" in out and "│" in out
