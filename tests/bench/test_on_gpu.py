# SPDX-License-Identifier: Apache-2.0
"""The script for GPU machines: it goes past what fails, and leaves a summary and all output."""

import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import torch

from bench import profile_kernel

NATIVE = ("pixel_contrast", "patch_consistency")
SCRIPT = Path(__file__).parents[2] / "bench" / "on_gpu.sh"


def run(folder: Path, python: Path, **environment: str) -> str:
    named = os.environ | {"PYTHON": str(python)} | environment
    subprocess.run([SCRIPT, folder], env=named, capture_output=True, check=False, timeout=60)
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
        re.findall(r"^(?:\w+=0 )?(?:part|bench) (\w+) \d", SCRIPT.read_text(), re.MULTILINE)
    )
    assert statuses.keys() == parts and {"build", "tests", "ncu", "pixel_contrast"} <= parts
    assert statuses["build"] == "0" and statuses["tests"] == "7"
    assert re.search(r"^commit \w+", summary, re.MULTILINE)
    with tarfile.open(tmp_path / "out" / "all.tar.gz") as archive:
        assert {f"./{part}.log" for part in parts} <= set(archive.getnames())
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"


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
