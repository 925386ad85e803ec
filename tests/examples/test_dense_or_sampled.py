# SPDX-License-Identifier: Apache-2.0
"""What the comparison of dense and sampled contrast prints is measured."""

from tests.examples.load import load


def test_comparison_is_measured(capsys):
    found = load("dense_or_sampled").main(["--images", "1", "--dim", "16", "--draws", "3"])
    assert found["seconds"] > 0 and found["seconds sampled"] > 0
    assert 0 < found["spread"] < 1  # seeds differ, and agree in the main
    assert 0.8 < found["cosine"] < 1
    assert found["cosine of mean"] > found["cosine"]  # what strays is averaged away
    assert found["megabytes"] < 4 * 8192**2 / 1e6 / 4  # far below an N x N matrix
    assert "8192 pixels" in capsys.readouterr().out
