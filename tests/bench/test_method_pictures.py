# SPDX-License-Identifier: Apache-2.0
"""The method's pictures are drawn from a run, whatever it has learnt."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench import method_pictures
from pipa_fast import train

SETTINGS = ["--config", "streets_pipa", "--iterations", "1", "--run.report", "false"]


@pytest.mark.slow
def test_pictures_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    argv = [*SETTINGS, "--run.dir", str(tmp_path), "--run.name", "short"]
    monkeypatch.setattr(sys, "argv", ["train", *argv, "--adaptation.patch.start", "0"])
    assert train.main() == 0
    out = tmp_path / "pictures"
    assert method_pictures.main(["--run", str(tmp_path / "short"), "--out", str(out)]) == 0
    drawn = {path.stem for path in out.glob("*.png")}
    committed = {path.stem for path in method_pictures.FOLDER.glob("*.png")}
    assert drawn == committed
    for path in out.glob("*.png"):
        assert np.asarray(Image.open(path).convert("L")).std() > 10, path


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys):
    assert method_pictures.main(["--run", str(tmp_path)]) == 2
    assert "error" in capsys.readouterr().err


def test_cells_of_both_crops_look_at_one_place():
    """Each crop's map is the image's own; what both see is the same cells of it, mirrored back."""
    image = torch.arange(8 * 12).view(8, 12)  # cells
    boxes = torch.tensor([[0, 0, 16, 16], [8, 16, 24, 32]])  # pixels, cells of 4
    shared = (8, 16, 16, 16)  # empty: they touch alone
    assert method_pictures.on_shared(image[:4, :4], boxes[0], False, shared, 4).shape == (2, 0)
    boxes = torch.tensor([[0, 0, 16, 16], [8, 4, 24, 20]])
    shared = (8, 4, 16, 16)
    first, second = image[:4, :4], image[2:6, 1:5].flip(-1)
    a = method_pictures.on_shared(first, boxes[0], False, shared, 4)
    b = method_pictures.on_shared(second, boxes[1], True, shared, 4)
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(a, image[2:4, 1:4])


def test_the_widest_overlap_is_found():
    boxes = torch.tensor([[[0, 0, 8, 8], [8, 8, 16, 16]], [[0, 0, 8, 8], [2, 2, 10, 10]]])
    assert method_pictures.widest(boxes) == 1
