# SPDX-License-Identifier: Apache-2.0
"""Every bench runs, checks before it times, and writes what it must. No time is tested."""

import json
from functools import partial
from importlib import import_module

import pytest
import torch

import bench.__main__ as command
from bench import harness, memory, tables
from bench.contenders import Contender, backends, contenders, peers_of
from bench.harness import Effort, check, interleave, measure, truth
from bench.machine import available_bytes
from bench.memory import peak_of_process
from bench.peers import compiled
from bench.problem import OPS, Problem, Settings, harmonic_labels, make
from pipa_fast import ops

CPU = torch.device("cpu")
QUICK = Effort(seconds=0, warmup=0, repeats=2, memory=False)
COLUMNS = {"op", "variant", "dtype", "n", "m", "d", "seed", "temperature", "classes"}
COLUMNS |= {"contender", "ours", "mode", "status"}
COLUMNS |= {"commit", "device", "cpu_flags", "threads", "torch"}


def small(op: str, **changes) -> Settings:
    n, d = (256, 24) if op in ("pixel_contrast", "patch_consistency") else (64, 5)
    variant = import_module(f"bench.{op}").VARIANTS[0]
    return Settings(**({"op": op, "n": n, "d": d, "variant": variant} | changes))


@pytest.mark.parametrize("op", OPS)
def test_command_writes_rows_and_picture(op, tmp_path, capsys):
    """The whole command at a tiny size, with every peer that needs no compiler."""
    s, rows_file, picture = small(op), tmp_path / "rows.json", tmp_path / "rows.png"
    peers = [name for name, peer in peers_of(op).items() if not peer.compiled]
    words = [op, "--device", "cpu", "--sizes", str(s.n), "--dims", str(s.d), "--seconds", "0"]
    words += ["--warmup", "0", "--repeats", "2", "--no-memory", "--peers", *peers]
    command.main([*words, "--json", str(rows_file), "--plot", str(picture)])
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    assert picture.read_bytes().startswith(b"\x89PNG")
    timed = {row["contender"] for row in rows if row["status"] == "ok"}
    runnable = {p for p in peers if not peers_of(op)[p].why_not(s)}
    assert timed - {harness.MM} == runnable | set(backends(op, CPU))
    for row in rows:
        assert row.keys() >= COLUMNS
        if row["status"] == "ok":
            assert 0 < row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"]
            assert row["repeats"] >= 2
    modes = {row["mode"] for row in rows if row["contender"] in runnable}
    assert modes >= {"backward", "both"} if make(s).differentiable else modes == {"forward"}
    assert op in capsys.readouterr().out


def test_forms_have_peers_of_their_own():
    settings = small("pixel_contrast", variant="all")
    rows = measure(settings, contenders("pixel_contrast", CPU, [], ["metric_learning"]), QUICK)
    assert {r["status"] for r in rows} == {"ok"}
    rows = measure(
        small("pixel_contrast"), contenders("pixel_contrast", CPU, [], ["metric_learning"]), QUICK
    )
    assert "--variants all" in rows[-1]["status"] and "p50_ms" not in rows[-1]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_dtypes_are_measured(dtype):
    settings = small("patch_consistency", dtype=dtype)
    rows = measure(settings, contenders("patch_consistency", CPU, None, ["eager"]), QUICK)
    assert {row["status"] for row in rows} == {"ok"}
    assert rows[0]["product_dtype"] == "float32"


def wrong(kind: str) -> Contender:
    """A contender that is off: in value, in gradient, not a number, or failing."""
    from bench.peers.pixel_contrast import eager

    def off(x, *arguments, **named):
        loss = eager(x, *arguments, **named)
        if kind == "value":
            return loss * 1.001
        if kind == "gradient":
            return loss + 0.01 * (x - x.detach()).sum()
        if kind == "nan":
            return loss * torch.nan
        raise MemoryError if kind == "memory" else TypeError("no such thing")

    return Contender("off", "off", False, lambda: off)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("value", "wrong: value_error 1.0e-03"),
        ("gradient", "wrong: grad_error"),
        ("nan", "wrong: value_error nan"),
        ("memory", "out of memory"),
        ("type", "failed: TypeError: no such thing"),
    ],
)
def test_wrong_contender_gets_no_time(kind, status):
    rows = measure(small("pixel_contrast"), [wrong(kind)], QUICK)
    assert [row["contender"] for row in rows] == [harness.MM, "off"]
    assert rows[1]["status"].startswith(status)
    assert "p50_ms" not in rows[1]


def test_wrong_labels_are_refused():
    """The pseudo labels' check sees labels, not only confidence."""
    problem = make(small("pseudo_labels"))
    true = truth(problem)

    def shifted(x, **arguments):
        labels, confidence, share = problem.truth(x, **arguments)
        labels[:, 0] = (labels[:, 0] + 1) % 5
        return labels, confidence, share

    assert check(problem, shifted, true)[0].startswith("wrong: value_error")
    assert check(problem, problem.truth, true)[0] == "ok"


def test_wrong_draws_are_refused():
    """Anchors: one pixel twice, another class's, too few; pairs: cells that don't match."""
    problem = make(small("sample_anchors", n=32))
    true = truth(problem)
    index, labels = ops.sample_anchors(problem.features, **problem.arguments)
    twice, other, fewer = index.clone(), labels.clone(), labels.clone()
    twice[1], other[0], fewer[:3] = index[0], (labels[0] + 1) % 5, 255
    for drawn in ((twice, labels), (index, other), (index, fewer)):
        assert check(problem, lambda *_, d=drawn, **__: d, true)[0].startswith("wrong: value_error")
    assert check(problem, lambda *_, **__: (index, labels), true)[0] == "ok"

    problem = make(small("overlap_pairs", n=12, d=2))
    true = truth(problem)
    a, b = ops.overlap_pairs(problem.features, **problem.arguments)
    for pairs in ((a, b.roll(1)), (a[1:], b[1:]), (a.clamp(max=a[0]), b.clamp(max=b[0]))):
        assert check(problem, lambda *_, p=pairs, **__: p, true)[0].startswith("wrong: value_error")
    assert check(problem, lambda *_, **__: (a, b), true)[0] == "ok"


def test_operators_and_waits_are_counted():
    """Ours never waits; the lineage's loop does for every class of every image."""
    rows = measure(small("sample_anchors"), contenders("sample_anchors", CPU), QUICK)
    ours, loop = rows
    assert ours["waits"] == 0 < ours["operators"] < loop["operators"]
    assert loop["waits"] > 2 * 5 * 2  # images, classes, hard and easy
    assert "waits for them: reference" in " ".join(tables.comparisons(rows))
    for contender, row in zip(
        ("foreach", "lineage"),
        measure(small("teacher_update"), contenders("teacher_update", CPU), QUICK),
        strict=True,
    ):
        assert (row["contender"], row["status"], row["waits"]) == (contender, "ok", 0)


def test_too_large_or_too_slow_is_not_tried():
    def never(*_, **__):
        raise AssertionError

    huge = Contender("huge", "huge", False, lambda: never, pair_bytes=1e12)
    slow = Contender("slow", "slow", False, lambda: never)
    settings = small("pixel_contrast")
    rows = measure(settings, [huge, slow], QUICK, expected={"slow": 1e6})
    assert rows[1]["status"].startswith("out of memory: needs some")
    assert rows[2]["status"].startswith("too slow")


def test_what_torch_keeps_of_a_gpus_memory_is_free(monkeypatch):
    """It was an earlier contender's, and nobody uses it."""
    numbers = {"mem_get_info": (10, 80), "memory_reserved": 60, "memory_allocated": 5}
    for name, number in numbers.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, number=number: number)
    assert available_bytes(torch.device("cuda")) == 65


def test_next_size_is_expected_from_the_last():
    row = {"op": "pixel_contrast", "variant": "", "dtype": "float32", "d": 8, "n": 100}
    row |= {"mode": "both", "status": "ok", "contender": "eager", "p50_ms": 500.0}
    next_size = Settings(op="pixel_contrast", n=400, d=8)
    assert command.expectations([row], next_size) == {"eager": pytest.approx(8.0)}
    other = Settings(op="pixel_contrast", n=400, d=16)
    assert command.expectations([row], other) == {}


def test_calls_take_turns():
    order = []
    calls = {n: lambda n=n: order.append(n) or {"both": 1.0} for n in "ab"}
    samples = interleave(calls, Effort(seconds=0, warmup=0, repeats=5))
    assert "".join(order) == "ab" * 6  # once to warm up, five times measured
    assert samples["a"] == {"both": [1.0] * 5}


def test_slow_calls_do_not_use_up_the_time(monkeypatch):
    now, order = [0.0], []
    monkeypatch.setattr(harness.time, "perf_counter", lambda: now[0])

    def call(name, seconds):
        order.append(name)
        now[0] += seconds
        return {"both": seconds * 1e3}

    calls = {"quick": lambda: call("quick", 0.1), "slow": lambda: call("slow", 0.9)}
    interleave(calls, Effort(seconds=20, warmup=0, repeats=3))
    assert 5 < order.count("quick") / order.count("slow") < 12


def test_product_is_taken_in_bands_where_it_is_large(monkeypatch):
    problem, shapes = make(small("pixel_contrast")), []
    original = torch.mm
    monkeypatch.setattr(harness, "BAND", 256 * 100)
    monkeypatch.setattr(
        harness.torch, "mm", lambda a, b, out: shapes.append(out.shape) or original(a, b, out=out)
    )
    harness.product(problem)()
    assert shapes == [(100, 256), (100, 256), (56, 256)]


def test_harmonic_labels():
    labels = harmonic_labels(8192, 16, torch.Generator().manual_seed(0))
    counts = labels.bincount()
    share = 1 / torch.arange(1, 17, dtype=torch.float64)
    assert counts.sum() == 8192
    assert (counts - share / share.sum() * 8192).abs().max() < 1


def test_memory_of_a_process():
    """Eager stores matrices of N x N."""
    settings = Settings(op="pixel_contrast", n=1024, d=16, variant="negatives")
    found = peak_of_process(settings, "eager", 1)
    assert found["status"] == "ok"
    assert 4 < found["peak_bytes"] / (4 * 1024**2) < 20  # matrices


@pytest.mark.parametrize(
    ("code", "words", "status"),
    [(-9, "", "out of memory"), (1, "Traceback\nKeyError: 1\n", "failed: KeyError: 1")],
)
def test_memory_of_a_process_that_breaks(code, words, status, monkeypatch):
    done = memory.subprocess.CompletedProcess([], code, "", words)
    monkeypatch.setattr(memory.subprocess, "run", lambda *_, **__: done)
    found = peak_of_process(small("pixel_contrast"), "eager", 1)
    assert found == {"status": status, "peak_bytes": None}


@pytest.mark.slow
@pytest.mark.parametrize("op", [op for op in OPS if "compile" in peers_of(op)])
def test_compiled_peers_are_right(op):
    s = small(op)
    taking_part = contenders(op, CPU, [], ["compile"])
    assert {row["status"] for row in measure(s, taking_part, QUICK)} == {"ok"}


def test_compiled_peers_are_compiled_at_every_size(monkeypatch):
    """Past as many shapes as recompile_limit, dynamo ran the function eagerly, and it was timed."""

    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    peer = compiled(twice)
    limits = {"recompile_limit": 1, "fail_on_recompile_limit_hit": True}
    with torch._dynamo.config.patch(limits):
        for n in range(2, 5):
            assert peer()(torch.ones(n)).sum() == 2 * n


def test_flex_attention_has_the_value():
    """Its backward needs a GPU; its loss can be had here, slowly."""
    from bench.peers.pixel_contrast import flex_attention

    for variant in ("negatives", "all"):
        problem: Problem = make(small("pixel_contrast", variant=variant))
        with torch.no_grad():
            found = flex_attention(compile=False)(problem.features, **problem.arguments)
        assert problem.value_error(found, truth(problem).value) < 1e-6


def test_unknown_names_are_told(capsys):
    for words in (["nothing"], ["pixel_contrast", "--peers", "nobody"]):
        with pytest.raises(SystemExit):
            command.main(words)
        assert words[-1] in capsys.readouterr().err


def test_a_bench_that_is_stopped_leaves_the_rows_of_every_op(tmp_path, monkeypatch):
    def once(settings: Settings, *_):
        if (settings.op, settings.n) == ("overlap_pairs", 16):
            raise KeyboardInterrupt
        row = {"op": settings.op, "variant": "", "dtype": "float32", "n": settings.n, "m": None}
        row |= {"d": settings.d, "mode": "forward", "status": "failed", "contender": "x"}
        return [row | {"ours": True}]

    monkeypatch.setattr(command, "measure", once)
    words = ["gather_pixels", "overlap_pairs", "--device", "cpu", "--peers", "none"]
    file = tmp_path / "rows.json"
    with pytest.raises(KeyboardInterrupt):
        command.main([*words, "--sizes", "8", "16", "--dims", "8", "--json", str(file)])
    ops = [json.loads(line)["op"] for line in file.read_text().splitlines()]
    assert ops == ["gather_pixels", "gather_pixels", "overlap_pairs"]
