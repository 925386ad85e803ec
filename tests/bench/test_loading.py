# SPDX-License-Identifier: Apache-2.0
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from bench import __main__ as command_line
from bench import loading
from pipa_fast.data.datasets import build_dataset
from pipa_fast.data.labels import GTA5_PALETTE, NUM_CLASSES

SIZE = (128, 256)
# resized both ways, as the published recipes do
SMALL = ["--data.source_size", "[96, 160]", "--data.target_size", "[64, 128]"]
SMALL += ["--data.crop", "[64, 64]", "--data.patch_crop", "[64, 64]", "--data.min_pixels", "10"]
SMALL += ["--data.batch_size", "1", "--adaptation.mixed.ignore_bottom", "0"]


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streets")
    for name in loading.WRITTEN:
        loading.write_streets(name, folder / name, 2, SIZE)
    return folder


def run(tmp_path, *words):
    out = tmp_path / "rows.json"
    command_line.main(["loading", "--json", str(out), *words])
    return {row["part"]: row for row in map(json.loads, out.read_text().splitlines())}


def on_disk(roots):
    return [
        "--data.source_root",
        str(roots / "gta5"),
        "--data.target_root",
        str(roots / "cityscapes"),
    ]


def test_streets_are_written_as_the_datasets_are(roots):
    for name in loading.WRITTEN:
        samples = build_dataset(name, "train", roots / name)
        assert len(samples) == 2
        for image, label, _ in samples:
            assert image.shape == (*SIZE, 3) and label.shape == SIZE
            known = set(range(NUM_CLASSES)) | {255}
            assert len(np.unique(label)) > 3 and set(np.unique(label)) <= known
    with Image.open(roots / "gta5" / "labels" / "00001.png") as label:
        palette = label.getpalette()
        assert label.mode == "P" and palette is not None
        np.testing.assert_array_equal(np.reshape(palette, (-1, 3))[:34], GTA5_PALETTE[:34])
    with pytest.raises(ValueError, match=r"synthia is not on disk.*--data.source_root"):
        loading.write_streets("synthia", roots / "synthia", 1)


def test_rates_and_stages_of_a_recipe(roots, tmp_path, capsys):
    words = ["--recipe", "gta2cs_daformer_pipa", "--workers", "0", "1", "--batches", "2"]
    words += ["--rounds", "1", "--step-ms", "500", "--", *SMALL, *on_disk(roots)]
    rows = run(tmp_path, *words)
    for workers in (0, 1):
        for way in ("ours", "whole"):
            row = rows[f"workers {workers}, {way}"]
            assert row["samples_per_s"] > 0 and math.isfinite(row["samples_per_core_s"])
            assert row["source_images"] == 2 and not row["source_written"]
            assert row["target_file_bytes"] > 0
    parts = {"read source image", "read source label", "resize label", "choose source crop"}
    parts |= {"read target image", "resize to crops", "crop pair", "collate", "bytes to float32"}
    shares = [rows[part]["share"] for part in (*parts, "the rest")]
    assert min(shares) >= 0 and sum(shares) == pytest.approx(1)
    assert rows["blur, separable 11"]["ms"] > 0
    told = capsys.readouterr().out
    assert "steps of 500 ms take 2.00 samples/s" in told and "times the samples of `whole`" in told


def test_what_is_not_on_disk_is_written(tmp_path, monkeypatch):
    write = loading.write_streets
    monkeypatch.setattr(loading, "write_streets", lambda name, *rest: write(name, *rest, SIZE))
    monkeypatch.chdir(tmp_path)  # where there is no data/gta5
    words = ["--workers", "0", "--batches", "1", "--rounds", "1", "--images", "1", "--no-whole"]
    rows = run(tmp_path, *words, "--no-blur", "--", *SMALL)
    row = rows["workers 0, ours"]
    assert row["source_written"] and row["target_written"] and row["source_images"] == 1
    assert "workers 0, whole" not in rows and not any("blur" in part for part in rows)


def test_streets_are_loaded_from_memory(tmp_path):
    words = ["--recipe", "streets_source", "--workers", "0", "--batches", "1", "--rounds", "1"]
    rows = run(tmp_path, *words, "--no-blur", "--", "--data.rare_class", "false")
    assert rows["workers 0, ours"]["source_file_bytes"] == 0
    assert "crop pair" not in rows


def test_a_wrong_recipe_is_told(capsys):
    with pytest.raises(SystemExit):
        command_line.main(["loading", "--recipe", "gta2cs_nothing"])
    assert "gta2cs_nothing" in capsys.readouterr().err


def test_the_whole_way_gives_the_same_images_but_for_ties(roots):
    settings = [*SMALL, *on_disk(roots)]
    config = loading.load(loading.read_recipe("gta2cs_daformer_pipa"), settings)
    samples, _ = loading.training_set(config, roots, 0)
    ours = samples[(0, 0)]
    with loading.whole():
        other = samples[(0, 0)]
    for name in ("source_image", "target_image", "target_crops"):
        assert abs(ours[name].astype(int) - other[name]).max() <= 2, name
    for name in ("source_label", "target_valid", "boxes", "flips"):
        np.testing.assert_array_equal(ours[name], other[name])


def test_dense_kernels_blur_alike():
    images = torch.rand(2, 3, 24, 40)
    sigma = torch.tensor([0.3, 1.1])
    blurred = loading.gaussian_blur(images, sigma, taps=11)
    for width in (11, 23):
        torch.testing.assert_close(
            loading.dense_blur(images, sigma, width), blurred, atol=1e-4, rtol=0
        )
