# SPDX-License-Identifier: Apache-2.0
"""What the model of cross-rank contrast says, and that its measurement runs. No time is tested."""

import pytest

import bench.__main__ as command
from bench import scaling
from bench.rows import load


def test_products_are_those_that_kernels_execute():
    """One rank visits each pair once forward; other ranks' rows are summed on one side."""
    positives = sum(share**2 for share in scaling.shares())
    assert scaling.products(1) == pytest.approx(0.5 * (1 + positives) + 1.5)
    assert scaling.products(3) - scaling.products(2) == pytest.approx(3)


def test_time_of_a_model():
    model = scaling.Model(rate=1e9, bandwidth=1e6, latency=1e-3, cores=2)
    compute, wire = model.seconds(1, 100, 10)
    assert compute == pytest.approx(2e5 * scaling.products(1) / 1e9) and wire == 0
    compute, wire = model.seconds(4, 100, 10)  # on two cores, four ranks take turns
    assert compute == pytest.approx(2 * 2e5 * scaling.products(4) / 1e9)
    received = 3 * 100 * (2 * 10 * 4 + scaling.SMALL)
    assert wire == pytest.approx(2 * (scaling.CALLS * 1e-3 + received / 1e6))


def test_fit_finds_the_model_again():
    model = scaling.Model(rate=3e9, bandwidth=2e8, latency=1e-4, cores=4)
    rows = []
    for ranks, way in ((1, "alone"), (2, "gather"), (4, "gather")):
        size = (ranks - 1) * 4096 * 64 * 4
        rows.append(
            scaling.Problem(ranks, 4096, 64, way)._asdict()
            | {
                "p50_ms": sum(model.seconds(ranks, 4096, 64)) * 1e3,
                "gather_ms": (model.latency + size / model.bandwidth) * 1e3,
                "latency_ms": model.latency * 1e3,
            }
        )
    assert scaling.fit(rows, 4) == pytest.approx(model)
    for row in scaling.explain(rows, scaling.fit(rows, 4)):
        assert row["model_error"] == pytest.approx(0, abs=1e-9)


def test_predictions_need_no_run(capsys):
    command.main(["scaling", "--predict", "4", "--rows", "64", "--dims", "8", "--rate", "1e12"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.split() and line.split()[0].isdigit()] == [
        "1",
        "2",
        "4",
    ]


@pytest.mark.slow
def test_two_processes_are_measured_and_agree(tmp_path):
    out = tmp_path / "rows.json"
    words = ["scaling", "--ranks", "1", "2", "--rows", "64", "--dims", "8", "--repeats", "1"]
    command.main([*words, "--json", str(out)])
    rows = load([out])
    assert [(r["ranks"], r["way"]) for r in rows] == [(1, "alone"), (2, "gather"), (2, "exchange")]
    assert all(r["grad_error"] < 1e-6 and r["value_error"] < 1e-6 for r in rows)


def test_one_rank_is_needed(capsys):
    with pytest.raises(SystemExit):
        command.main(["scaling", "--ranks", "2"])
    assert "--ranks must hold 1" in capsys.readouterr().err
