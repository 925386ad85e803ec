# SPDX-License-Identifier: Apache-2.0
import functools
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipa_fast import predict
from pipa_fast.data.labels import PALETTE
from pipa_fast.evaluation.pictures import Picture
from pipa_fast.training import checkpoint
from pipa_fast.training.config import Config, EvaluationConfig


class Bright(nn.Module):
    """Says class 10 (sky) where an image is bright and 0 (road) where it is dark."""

    stride = 4

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, int]] = []
        self.batches: list[int] = []
        self.bright_first: list[bool] = []

    def forward(self, images):
        assert images.shape[2] % 4 == 0 and images.shape[3] % 4 == 0
        self.sizes.append((images.shape[2], images.shape[3]))
        self.batches.append(len(images))
        self.bright_first.append(bool(images[0, 0, 0, 0] > 0.5))
        cells = nn.functional.avg_pool2d(images.mean(1, keepdim=True), 4)
        logits = torch.full((images.shape[0], 19, *cells.shape[2:]), -9.0)
        logits[:, 10], logits[:, 0] = cells[:, 0] - 0.5, 0.5 - cells[:, 0]
        return logits


def half_bright(height: int, width: int) -> np.ndarray:
    image = np.full((height, width, 3), 20, np.uint8)
    image[:, width // 2 :] = 235
    return image


@pytest.fixture
def network(monkeypatch):
    network = Bright()
    config = Config(recipe="bright")
    network.config = config
    monkeypatch.setattr(checkpoint, "find_weights", lambda *_: None)
    monkeypatch.setattr(checkpoint, "load_run", lambda *_: (network, config))
    return network


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


def predict_folder(folder, *words: str):
    out = folder.parent / "out"
    code = predict.main([str(folder), "--run", "runs/r", "--out", str(out), *words])
    assert code == 0
    return out


def refuse(folder, capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        predict_folder(folder, *words)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_every_image_is_painted_at_its_own_size(folder, network, capsys):
    Image.fromarray(half_bright(24, 40)).save(folder / "a.png")
    Image.fromarray(half_bright(33, 51)).save(folder / "b.JPG", quality=95)
    Image.fromarray(half_bright(16, 16)[..., 0]).save(folder / "grey.png")
    (folder / "notes.txt").write_text("left alone")
    out = predict_folder(folder, "--raw")
    said = capsys.readouterr().out
    assert "painted 3 images" in said and "1 other files" in said
    assert sorted(p.name for p in out.iterdir()) == [
        f"{stem}_{kind}.png" for stem in ("a", "b", "grey") for kind in ("labels", "overlay")
    ]
    for stem, size in (("a", (40, 24)), ("b", (51, 33)), ("grey", (16, 16))):
        with Image.open(out / f"{stem}_labels.png") as raw:
            assert raw.mode == "L" and raw.size == size
            labels = np.asarray(raw)
        assert (labels[:, : size[0] // 2 - 4] == 0).all()
        assert (labels[:, size[0] // 2 + 4 :] == 10).all()
    with Image.open(out / "a_overlay.png") as painted:
        corner = np.asarray(painted)[0, 0]
    assert np.abs(corner - (PALETTE[0].astype(float) + 20) / 2).max() <= 1


def test_side_by_side_shows_image_overlay_and_classes(folder, network):
    Image.fromarray(half_bright(24, 40)).save(folder / "a.png")
    with Image.open(
        predict_folder(folder, "--side-by-side", "--blend", "0") / "a_overlay.png"
    ) as p:
        picture = np.asarray(p)
    assert picture.shape == (24, 120, 3)
    assert np.array_equal(picture[:, :40], picture[:, 40:80])
    assert np.array_equal(picture[0, 80], PALETTE[0])


def test_large_images_are_reduced_for_the_network_alone(folder, network):
    Image.fromarray(half_bright(64, 128)).save(folder / "a.png")
    out = predict_folder(folder, "--raw", "--max-side", "32")
    assert network.sizes == [(16, 32)]
    with Image.open(out / "a_labels.png") as raw:
        assert raw.size == (128, 64)
        assert set(np.unique(np.asarray(raw))) == {0, 10}


def test_images_are_seen_at_the_scale_that_the_run_is_evaluated_at(folder, network):
    network.config.evaluation.size = (32, 64)
    Image.fromarray(half_bright(64, 128)).save(folder / "a.png")
    Image.fromarray(half_bright(16, 40)).save(folder / "b.png")
    predict_folder(folder)
    assert network.sizes == [(32, 64), (16, 40)]


def test_logits_are_enlarged_up_to_a_limit_then_classes(folder, network, monkeypatch):
    """Between the reduced image's pixels, logits can tell where an edge is; classes cannot."""
    image = np.full((64, 128, 3), 20, np.uint8)
    image[:, 70:] = 235
    Image.fromarray(image).save(folder / "a.png")
    edges = []
    for limit in (64 * 128, 64 * 128 - 1):
        monkeypatch.setattr(predict, "MAX_PIXELS", limit)
        with Image.open(predict_folder(folder, "--raw", "--max-side", "32") / "a_labels.png") as p:
            labels = np.asarray(p)
        assert labels.shape == (64, 128) and (labels == labels[0]).all()
        edges.append(int((labels[0] == 0).sum()))
    assert edges[0] % 4 != 0 and edges[1] % 4 == 0
    assert abs(edges[0] - 70) < 4 > abs(edges[1] - 70)


def test_sliding_windows_are_passed_on(folder, network):
    Image.fromarray(half_bright(16, 32)).save(folder / "a.png")
    words = ("--crop", "16", "16", "--stride", "8", "8")
    predict_folder(folder, *words)
    assert network.sizes == [(16, 16)] and network.batches == [3]
    predict_folder(folder, *words, "--window-batch", "2")
    assert network.batches == [3, 2, 1]


def test_windows_are_the_runs_but_for_what_is_given(folder, network, capsys):
    network.config.evaluation = EvaluationConfig(crop=(16, 16), stride=(8, 8), window_batch=2)
    Image.fromarray(half_bright(16, 32)).save(folder / "a.png")
    predict_folder(folder)
    predict_folder(folder, "--window-batch", "3")
    predict_folder(folder, "--stride", "16", "16", "--precision", "fp32")
    assert network.batches == [2, 1, 3, 2] and set(network.sizes) == {(16, 16)}
    said = capsys.readouterr().out
    assert "images of sides up to 2048, in windows of 16 x 16, 16 x 16 apart, fp32" in said


@pytest.mark.parametrize("words", [[], ["--precision", "fp32"]])
def test_the_network_computes_in_the_runs_precision(folder, network, monkeypatch, words):
    network.config.precision = "bf16"
    forward, seen = network.forward, []

    def watched(images):
        on = torch.is_autocast_enabled("cpu")
        seen.append(torch.get_autocast_dtype("cpu") if on else None)
        return forward(images)

    monkeypatch.setattr(network, "forward", watched)
    Image.fromarray(half_bright(16, 32)).save(folder / "a.png")
    predict_folder(folder, "--device", "cpu", *words)
    assert seen == [None if words else torch.bfloat16]


def test_flipping_shows_the_network_the_mirror_image(folder, network):
    Image.fromarray(half_bright(16, 32)).save(folder / "a.png")
    predict_folder(folder, "--flip")
    assert network.bright_first == [False, True]


def test_a_run_that_is_evaluated_with_flips_predicts_with_them(folder, network):
    network.config.evaluation.flip = True
    Image.fromarray(half_bright(16, 32)).save(folder / "a.png")
    predict_folder(folder)
    assert network.bright_first == [False, True]


def test_photos_lie_as_the_camera_was_held(folder, network):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(half_bright(16, 32)).save(folder / "a.jpg", exif=exif)
    with Image.open(predict_folder(folder) / "a_overlay.png") as painted:
        assert painted.size == (16, 32)


def test_unreadable_images_are_named(folder, network, capsys):
    (folder / "broken.png").write_bytes(b"not a picture")
    assert "broken.png cannot be read as an image" in refuse(folder, capsys)
    (folder / "broken.png").unlink()
    Image.fromarray(half_bright(64, 64)).save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:60])
    assert "cut.png cannot be read as an image" in refuse(folder, capsys)
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(folder / "cut.png")
    assert "not 8 bits a channel" in refuse(folder, capsys)


def test_an_unreadable_image_costs_the_others_nothing(folder, network, capsys):
    for name in ("a.png", "c.png"):
        Image.fromarray(half_bright(8, 8)).save(folder / name)
    for name in ("b.png", "d.jpg"):
        (folder / name).write_bytes(b"not a picture")
    with pytest.raises(SystemExit) as stop:
        predict_folder(folder)
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert "painted 2 images" in said.out and "2 of 4 images" in said.err
    for name in ("b.png", "d.jpg"):
        assert f"{folder / name} cannot be read as an image" in said.err
    out = folder.parent / "out"
    assert sorted(p.name for p in out.iterdir()) == ["a_overlay.png", "c_overlay.png"]


def test_the_next_image_is_read_while_the_network_is_at_one(folder, network, monkeypatch):
    read = [threading.Event() for _ in range(6)]

    def one(i):
        read[i].set()
        return half_bright(8, 8 + 4 * i)

    def forward(images):
        i = (images.shape[3] - 8) // 4
        assert all(event.wait(10) for event in read[i + 1 : i + 2])
        return plain(images)

    plain, network.forward = network.forward, forward
    pictures = [Picture(f"{i}", functools.partial(one, i)) for i in range(len(read))]
    monkeypatch.setattr(predict, "find_pictures", lambda *_, **__: pictures)
    assert len(list(predict_folder(folder).iterdir())) == len(read)


def test_folders_without_images_are_refused(folder, network, capsys):
    assert "must hold .png, .jpg, .jpeg files" in refuse(folder, capsys)
    assert "must be a directory of images" in refuse(folder / "nowhere", capsys)


def test_images_that_would_share_an_output_are_refused(folder, network, capsys):
    for name in ("a.png", "a.jpg"):
        Image.fromarray(half_bright(8, 8)).save(folder / name)
    assert "a.jpg and a.png would share an output" in refuse(folder, capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [(("--blend", "1.5"), "--blend must be a share"), (("--max-side", "0"), "--max-side must be")],
)
def test_bad_options_are_named(folder, network, capsys, words, message):
    Image.fromarray(half_bright(8, 8)).save(folder / "a.png")
    assert message in refuse(folder, capsys, *words)


def test_the_images_are_never_written_over(folder, network, capsys):
    Image.fromarray(half_bright(8, 8)).save(folder / "a.png")
    with pytest.raises(SystemExit):
        predict.main([str(folder), "--run", "r", "--out", str(folder / ".")])
    assert "--out must not be the folder of the images" in capsys.readouterr().err
    image = folder / "berlin_000000_000019_leftImg8bit.png"
    Image.fromarray(half_bright(8, 8)).save(image)
    before, words = image.read_bytes(), ["--run", "r", "--out", str(folder)]
    with pytest.raises(SystemExit):
        predict.main([str(image), *words, "--format", "cityscapes"])
    assert "--out must not be the folder of the images" in capsys.readouterr().err
    assert image.read_bytes() == before
    assert predict.main([str(image), *words]) == 0  # an overlay has a name of its own


def test_folders_inside_are_searched_on_request(folder, network, capsys):
    (folder / "town" / "night").mkdir(parents=True)
    for name in ("a.png", "town/a.png", "town/night/b.jpeg"):
        Image.fromarray(half_bright(8, 8)).save(folder / name)
    (folder / "town" / "notes.txt").write_text("left alone")
    out = predict_folder(folder, "--recursive")
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.png")) == [
        "a_overlay.png",
        "town/a_overlay.png",
        "town/night/b_overlay.png",
    ]
    said = capsys.readouterr().out
    assert "painted 3 images" in said and "1 other files" in said
    predict_folder(folder)
    assert "painted 1 images" in capsys.readouterr().out


def test_outputs_are_never_searched(folder, network, capsys):
    Image.fromarray(half_bright(8, 8)).save(folder / "a.png")
    words = [str(folder), "--run", "r", "--out", str(folder / "x" / "out")]
    with pytest.raises(SystemExit):
        predict.main([*words, "--recursive"])
    assert "which is searched too" in capsys.readouterr().err
    assert predict.main(words) == 0


def test_one_image(folder, network, capsys):
    Image.fromarray(half_bright(8, 8)).save(folder / "a.png")
    assert [p.name for p in predict_folder(folder / "a.png").iterdir()] == ["a_overlay.png"]
    assert "painted 1 images" in capsys.readouterr().out


def test_the_legend_names_the_classes_that_are_there(folder, network):
    Image.fromarray(half_bright(24, 200)).save(folder / "a.png")
    with Image.open(predict_folder(folder, "--blend", "0") / "a_overlay.png") as plain:
        bare = np.asarray(plain)
    with Image.open(predict_folder(folder, "--blend", "0", "--legend") / "a_overlay.png") as shown:
        picture = np.asarray(shown)
    assert np.array_equal(picture[:24, :200], bare)
    colours = {tuple(c) for c in picture[24:].reshape(-1, 3).tolist()}
    assert {tuple(PALETTE[c].tolist()) for c in (0, 10)} <= colours
    assert tuple(PALETTE[13].tolist()) not in colours


def test_label_ids_for_the_cityscapes_server(folder, network, capsys):
    names = ("berlin_000000_000019_leftImg8bit", "bonn_000001_000019_leftImg8bit")
    for town, name in zip(("berlin", "bonn"), names, strict=True):
        (folder / town).mkdir()
        Image.fromarray(half_bright(16, 32)).save(folder / town / f"{name}.png")
    out = predict_folder(folder, "--recursive", "--format", "cityscapes")
    assert sorted(p.name for p in out.rglob("*")) == [f"{name}.png" for name in names]
    with Image.open(out / f"{names[0]}.png") as written:
        assert written.mode == "L" and written.size == (32, 16)
        ids = np.asarray(written)
    assert (ids[:, :12] == 7).all() and (ids[:, 20:] == 23).all()  # road and sky, no train ids
    assert "labelled 2 images" in capsys.readouterr().out


def test_names_that_the_server_does_not_know_are_refused(folder, network, capsys):
    Image.fromarray(half_bright(8, 8)).save(folder / "berlin_000000_000019_leftImg8bit.png")
    Image.fromarray(half_bright(8, 8)).save(folder / "holiday.png")
    message = refuse(folder, capsys, "--format", "cityscapes")
    assert "1 do not: holiday" in message and not (folder.parent / "out").exists()


@pytest.mark.parametrize("words", ["--raw", "--side-by-side", "--legend", "--blend 0.3"])
def test_the_server_gets_nothing_but_label_ids(folder, network, capsys, words):
    message = refuse(folder, capsys, "--format", "cityscapes", *words.split())
    assert f"leave out {words.split()[0]}" in message


def test_frames_of_a_video(folder, network, monkeypatch, capsys):
    (folder / "drive.mp4").write_bytes(b"a video")
    frames = [
        Picture(f"drive_{i:06d}", lambda w=w: half_bright(16, w)) for i, w in enumerate((96, 96))
    ]
    asked = []

    def read_frames(path):
        asked.append(path)
        yield from frames

    monkeypatch.setattr(predict, "read_frames", read_frames)
    out = predict_folder(folder / "drive.mp4", "--legend")
    assert asked == [folder / "drive.mp4"]
    assert "painted 2 frames" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == [
        "drive_000000_overlay.png",
        "drive_000001_overlay.png",
    ]
    with Image.open(out / "drive_000000_overlay.png") as first:
        colours = {tuple(c) for c in np.asarray(first).reshape(-1, 3).tolist()}
    assert {tuple(colour) for colour in PALETTE.tolist()} <= colours  # whatever a frame shows
    message = refuse(folder / "drive.mp4", capsys, "--format", "cityscapes")
    assert "needs images" in message
