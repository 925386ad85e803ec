# SPDX-License-Identifier: Apache-2.0
"""The script for GPU machines: it goes past what fails, and leaves a summary and all output."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from bench import profile_kernel

NATIVE = ("pixel_contrast", "patch_consistency")
SCRIPT = Path(__file__).parents[2] / "bench" / "on_gpu.sh"


def run(folder: Path, python: Path, *parts: str, **environment: str) -> str:
    named = os.environ | {"PYTHON": str(python)} | environment
    words = [SCRIPT, folder, *parts]
    subprocess.run(words, env=named, capture_output=True, check=False, timeout=60)
    return (folder / "summary.md").read_text()


def stand_in(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return path


def test_parts_that_fail_do_not_stop_it(tmp_path):
    fails = stand_in(tmp_path / "fails", 'case "$*" in *bench.*|*pytest*) exit 7;; esac; echo fine')
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    summary = run(tmp_path / "out", fails)
    statuses = dict(re.findall(r"^\| (\w+) \| (\d+) \|", summary, re.MULTILINE))
    parts = set(
        re.findall(r"^(?:\w+=0 )?(?:part|bench|tests) (\w+) \d", SCRIPT.read_text(), re.MULTILINE)
    )
    assert statuses.keys() == parts and {"build", "tests", "ncu", "pixel_contrast"} <= parts
    assert statuses["build"] == "0" and statuses["tests"] == "7"
    assert re.search(r"^commit \w+", summary, re.MULTILINE)
    with tarfile.open(tmp_path / "out" / "all.tar.gz") as archive:
        assert {f"./{part}.log" for part in parts} <= set(archive.getnames())
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"


def test_parts_that_are_named_have_all_the_time(tmp_path):
    fine = stand_in(tmp_path / "fine", "echo fine")
    summary = run(tmp_path / "out", fine, "info", "widths_mma", LIMIT="200")
    done = re.findall(r"^\| (\w+) \| 0 \|", summary, re.MULTILINE)
    assert done == ["build", "info", "widths_mma"]
    with tarfile.open(tmp_path / "out" / "all.tar.gz") as archive:
        assert not {"./tests.log", "./pixel_contrast.log"} & set(archive.getnames())
    wrong = subprocess.run([SCRIPT, tmp_path / "no", "infos"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "no part infos" in wrong.stderr
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_tests_that_run_out_of_time_tell_what_failed(tmp_path):
    """pytest does so where it is interrupted; of one that is ended, dots are left."""
    (tmp_path / "test_two.py").write_text(
        "import time\ndef test_wrong():\n    assert 1 == 2\ndef test_long():\n    time.sleep(60)\n"
    )
    text = SCRIPT.read_text()
    functions = text[text.index("part() {") : text.index("\n# sanitizers")]
    named = dict(summary=tmp_path / "summary.md", out=tmp_path, PYTHON=sys.executable, limit=60)
    given = "; ".join(f"{name}={value}" for name, value in named.items())
    call = f"wanted=(); {given}; export PYTHON; {functions}\nexport -f spread_tests\n"
    call += f"tests two 20 {tmp_path}/test_two.py -n 0"
    subprocess.run([str(shutil.which("bash")), "-c", call], check=True, capture_output=True)
    assert "| two | 124 |" in (tmp_path / "summary.md").read_text()
    assert "assert 1 == 2" in (tmp_path / "two.log").read_text()


def sanitizers(folder: Path, status: int) -> tuple[int, list[str]]:
    """Run that part with a stand-in for compute-sanitizer; return its status and the calls."""
    text = SCRIPT.read_text()
    function = text[text.index("sanitizers() {") : text.index("\n# full_step")]
    stand_in(folder / "compute-sanitizer", f'echo "$@" >>"{folder}/calls"; exit {status}')
    named = os.environ | {"PYTHON": "python", "PATH": f"{folder}:{os.environ['PATH']}"}
    words = [str(shutil.which("bash")), "-c", f"{function}\nsanitizers"]
    done = subprocess.run(words, env=named, timeout=60)
    return done.returncode, (folder / "calls").read_text().splitlines()


def test_each_tool_looks_at_both_contrasts(tmp_path, monkeypatch, capsys):
    status, calls = sanitizers(tmp_path, 0)
    pairs = {tuple(re.findall(r"--tool (\w+) .* bench.profile_kernel (\w+) ", c)[0]) for c in calls}
    tools, ops = ("memcheck", "racecheck", "initcheck", "synccheck"), set(NATIVE)
    assert status == 0 and pairs == {(tool, op) for tool in tools for op in ops}
    (tmp_path / "calls").unlink()
    status, calls = sanitizers(tmp_path, 9)
    assert status == 1 and len(calls) == 8, "a finding does not hide the next"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for call in calls:
        words = call.split("bench.profile_kernel ")[1].split()
        with pytest.raises(SystemExit):
            profile_kernel.main(words)
        assert "needs a GPU" in capsys.readouterr().err  # every word was taken


def test_it_ends_in_time(tmp_path):
    hangs = stand_in(tmp_path / "hangs", '[ "$1" = - ] || exec sleep 60')
    summary = run(tmp_path / "out", hangs, LIMIT="7")
    assert "| build | 124 |" in summary
    assert "| tests | not run |" in summary


def test_every_bench_command_is_one():
    """The words that the script gives `python -m bench` are ones that it takes."""
    from bench.__main__ import arguments
    from bench.contenders import peers_of
    from bench.problem import OPS

    text = SCRIPT.read_text().replace("\\\n", " ").replace('"${half[@]}"', "--dtypes bfloat16")
    calls = re.findall(r"^bench \w+ \d+ (.*)$", text, re.MULTILINE)
    assert len(calls) >= 5
    for call in calls:
        args = arguments().parse_args(call.split())
        assert set(args.ops) <= set(OPS)
        for op in args.ops:
            assert set(args.peers or ()) - {"none"} <= set(peers_of(op))
