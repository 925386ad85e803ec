# SPDX-License-Identifier: Apache-2.0
import json
import sys
from pathlib import Path

import pytest

from bench import audit

FLAW = {"id": "PYSEC-1", "fix_versions": ["3"], "aliases": [], "description": ""}


def program(folder: Path, text: str) -> Path:
    """A pip-audit that says `text`."""
    path = folder / "pip-audit"
    path.write_text(f"#!{sys.executable}\nprint({text!r})\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def pins(tmp_path):
    installed = audit.installed_versions()
    path = tmp_path / "constraints.txt"
    path.write_text(f"# what was tested\nPyYAML=={installed['pyyaml']}\nno-such-package==1\n")
    return path


def test_pins_are_compared_with_what_is_installed(pins, capsys):
    assert audit.main([str(pins)]) == 0
    assert "1 of 2 as pinned, 0 differ, 1 not installed" in capsys.readouterr().out
    pins.write_text("PyYAML==0.1  # old\n")
    assert audit.main([str(pins)]) == 1
    assert "PyYAML is" in capsys.readouterr().err


def test_advisories_fail_and_silence_is_told(pins, tmp_path, capsys):
    packages = [
        {"name": "a", "version": "2", "vulns": [FLAW]},
        {"name": "b", "version": "1", "vulns": []},
        {"name": "c", "skip_reason": "not found"},
    ]
    said = program(tmp_path, json.dumps({"dependencies": packages}))
    assert audit.main([str(pins), "--pip-audit", str(said)]) == 1
    told = capsys.readouterr()
    assert "1 for 2 packages; 1 the index cannot tell" in told.out
    assert "a 2: PYSEC-1, fixed in 3" in told.err
    assert audit.main([str(pins), "--pip-audit", str(program(tmp_path, "no JSON"))]) == 0
    assert "not looked up: it wrote nothing" in capsys.readouterr().out
    assert audit.main([str(pins), "--pip-audit", str(tmp_path / "absent")]) == 0
    assert "is not there" in capsys.readouterr().out
