# SPDX-License-Identifier: Apache-2.0
"""The embedded pair in the published layouts goes through the commands that a download would."""

import json

import pytest

from bench import layouts


@pytest.mark.slow
def test_a_published_recipe_is_stopped_and_resumed_on_two_processes(tmp_path, capsys):
    layouts.main(["--out", str(tmp_path), "--iterations", "8", "--recipes", "gta2cs_source"])
    (row,) = json.loads((tmp_path / "layouts.json").read_text())
    assert row["resumed"] and 0 <= row["miou"] <= 100
    assert "gta2cs_source" in capsys.readouterr().out
