# SPDX-License-Identifier: Apache-2.0
"""python -m pipa_fast.info: says what can run, and why the rest cannot."""

import subprocess
import sys

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


def test_absent_library(monkeypatch):
    monkeypatch.setattr(info, "LIBRARIES", ("no-such-library",))
    assert info.versions()["no-such-library"] == "absent"


def test_tables_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    info.main()
    out = capsys.readouterr().out
    assert "backends" in out and "│" in out
