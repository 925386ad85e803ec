# SPDX-License-Identifier: Apache-2.0
"""Profiles of steps and kernels: the commands, their errors, and torch.profiler's files."""

import gzip
import itertools
import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from bench import profile_kernel, profile_step

SCRIPT = Path(__file__).parents[2] / "bench" / "profile.sh"
SMALL = ["--data.crop", "[32,64]", "--data.batch_size", "1", "--data.rare_class", "false"]


def run(*words: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": "a-python"}
    if path is not None:
        environment["PATH"] = f"{path}:{environment['PATH']}"
    return subprocess.run(
        [SCRIPT, *words], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def commands(*words: str, path: Path | None = None) -> list[list[str]]:
    """What a dry run would run, as lists of words."""
    found = run(*words, "--dry-run", path=path)
    assert found.returncode == 0, found.stderr
    return [shlex.split(line) for line in found.stdout.splitlines()]


def tools(folder: Path, *, gpu: bool) -> Path:
    """Stand-ins for Nsight, and for a machine with a GPU or without."""
    for name, status in (("nsys", 0), ("ncu", 0), ("nvidia-smi", 0 if gpu else 9)):
        (folder / name).write_text(f'#!/bin/bash\necho "ran $0 $*"\nexit {status}\n')
        (folder / name).chmod(0o755)
    return folder


def test_a_step_by_torch():
    (words,) = commands("step", "--tool", "torch")
    assert words[:5] == ["a-python", "-m", "bench.profile_step", "--recipe", "streets_pipa"]
    assert words[words.index("--trace") + 1] == "runs/profile/step_streets_pipa.json.gz"
    (words,) = commands(
        "step", "gta2cs_hrda", "--data.crop", "[64, 64]", "--steps", "7", "--tool", "torch"
    )
    assert words[words.index("--steps") + 1] == "7"
    assert words[words.index("--") :] == ["--", "--data.crop", "[64, 64]"]
    (words,) = commands("step", "--tool", "torch", "--output", "a b", "--seed", "3")
    assert "a b/step_streets_pipa.json.gz" in words and words[-2:] == ["--seed", "3"]


def test_a_step_by_nsys():
    profile, stats = commands("step", "gta2cs_hrda", "--seed", "3", "--tool", "nsight")
    assert profile[:2] == ["nsys", "profile"] and stats[:2] == ["nsys", "stats"]
    traces = next(w for w in profile if w.startswith("--trace="))
    assert {"cuda", "nvtx", "osrt"} <= set(traces.partition("=")[2].split(","))
    assert {"--capture-range=cudaProfilerApi", "--trace-fork-before-exec=true"} <= set(profile)
    own = profile[profile.index("a-python") :]
    assert own == shlex.split(
        "a-python -m bench.profile_step --recipe gta2cs_hrda --steps 3 -- --seed 3"
    )
    assert stats[-1] == profile[profile.index("--output") + 1] + ".nsys-rep"


def test_ncu_looks_at_kernels_of_ours_alone():
    """A sort is a dozen launches of torch's, as many as are looked at."""
    profile, _ = commands("kernel", "pixel_contrast", "--tool", "nsight")
    kind, _, pattern = profile[profile.index("--kernel-name") + 1].partition(":")
    tables = [(SCRIPT.parents[1] / "docs" / name).read_text() for name in ("triton.md", "cuda.md")]
    ours = {
        name for table in tables for name in re.findall(r"^\| (\w+) \| [^-|]", table, re.MULTILINE)
    }
    ours -= {"kernel"}
    assert kind == "regex" and {"sum_apart_kernel", "hopper_attend_kernel", "_sweep"} <= ours
    assert [name for name in ours if not re.search(pattern, name)] == []
    torchs = "DeviceRadixSortOnesweepKernel vectorized_elementwise_kernel reduce_kernel "
    torchs += "searchsorted_cuda_kernel index_elementwise_kernel _scatter_gather_elementwise_kernel"
    assert [name for name in torchs.split() if re.search(pattern, name)] == []
    for words in (("sample_anchors",), ("pixel_contrast", "--backend", "reference")):
        profile, _ = commands("kernel", *words, "--tool", "nsight")
        assert "--kernel-name" not in profile


def test_a_kernel_by_ncu():
    profile, details = commands("kernel", "pixel_contrast", "512", "64", "--tool", "nsight")
    sections = {b for a, b in itertools.pairwise(profile) if a == "--section"}
    assert sections >= {
        "SpeedOfLight",
        "MemoryWorkloadAnalysis",
        "SchedulerStats",
        "SourceCounters",
    }
    assert profile[profile.index("--profile-from-start") + 1] == "off"
    own = profile[profile.index("a-python") :]
    assert own == ["a-python", "-m", "bench.profile_kernel", "pixel_contrast", "512", "64"]
    assert details[:3] == ["ncu", "--import", profile[profile.index("--export") + 1] + ".ncu-rep"]


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize(("word", "tool"), [("step", "nsys"), ("kernel", "ncu")])
def test_nsight_is_taken_where_it_and_a_gpu_are(tmp_path, gpu, word, tool):
    words = [word, *(["pixel_contrast"] if word == "kernel" else [])]
    first = commands(*words, path=tools(tmp_path, gpu=gpu))[0][0]
    assert first == (tool if gpu else "a-python")


def test_it_runs_what_it_prints(tmp_path):
    path = tools(tmp_path, gpu=True)
    found = run("kernel", "pixel_contrast", "--output", str(tmp_path / "out"), path=path)
    assert found.returncode == 0 and (tmp_path / "out").is_dir()
    printed = found.stdout.splitlines()
    assert printed[1].startswith(f"ran {path}/ncu --target-processes")
    assert printed[3].startswith(f"ran {path}/ncu --import")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "must be step or kernel; got none"),
        (["steps"], "must be step or kernel; got 'steps'"),
        (["kernel"], "kernel needs an OP, such as pixel_contrast; got none"),
        (
            ["kernel", "--backend", "cpu"],
            "such as pixel_contrast; got --backend",
        ),
        (["step", "--tool", "perf"], "--tool must be nsight or torch; got 'perf'"),
        (["step", "--steps", "0"], "--steps must be a count of at least 1; got '0'"),
        (["kernel", "pixel_contrast", "--steps", "2"], "--steps is of step"),
        (["step", "--output"], "--output needs a value"),
    ],
)
def test_wrong_words_are_told(words, message):
    found = run(*words)
    assert found.returncode == 2 and message in found.stderr and not found.stdout


def test_help_is_the_head_of_the_script():
    assert "bench/profile.sh kernel OP [N [D]]" in run("--help").stdout


def names(trace: Path) -> set[str]:
    with gzip.open(trace, "rt") as file:
        return {event.get("name", "") for event in json.load(file)["traceEvents"]}


def test_a_kernels_trace_by_torch(tmp_path, capsys):
    trace = tmp_path / "new" / "kernel.json.gz"
    profile_kernel.main(["pixel_contrast", "64", "8", "--trace", str(trace)])
    assert {"pipa_fast::pixel_contrast", "pipa_fast::pixel_contrast_backward"} <= names(trace)
    assert "pixel_contrast_backward" in trace.with_name("kernel.txt").read_text()
    assert "pixel_contrast, 64 x 8, float32" in capsys.readouterr().out


def test_a_steps_trace_by_torch(tmp_path):
    trace = tmp_path / "step.json.gz"
    words = ["--steps", "1", "--warmup", "0", "--trace", str(trace), "--", *SMALL]
    profile_step.main(words)
    assert names(trace) >= {"data", "load", "step", "forward:patch", "backward:mixed", "ema"}


@pytest.mark.parametrize(
    ("main", "words", "message"),
    [
        (profile_kernel.main, ["nothing"], "invalid choice: 'nothing'"),
        (profile_kernel.main, ["pixel_contrast", "--trace", "t", "--backend", "x"], "got 'x'"),
        (profile_kernel.main, ["pixel_contrast", "--trace", "t", "--variant", "x"], "got 'x'"),
        (profile_step.main, ["--steps", "0"], "--steps must be 1 or more"),
        (profile_step.main, ["--recipe", "nothing"], "got 'nothing'"),
        (profile_step.main, ["--", "--data.bach_size", "1"], "data.batch_size"),
    ],
)
def test_wrong_names_are_told(main, words, message, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert message in capsys.readouterr().err
