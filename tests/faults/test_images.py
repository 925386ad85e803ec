# SPDX-License-Identifier: Apache-2.0
"""Images and labels that are damaged, of another kind, or turned; tests/data/test_folder.py has
missing ones."""

import re
import struct

import numpy as np
import PIL
import pytest
from PIL import Image, ImageOps

from pipa_fast import train
from pipa_fast.data.datasets import build_dataset
from pipa_fast.data.files import read_ids, read_image
from tests.data.published import label_file, make, png_file

NOISE = np.random.default_rng(0).integers(0, 255, (16, 24, 3), np.uint8)
FORMATS = ["PNG", "JPEG", "TIFF", "BMP", "WEBP"]


def stored(path, kind="PNG", image=None, **options):
    (Image.fromarray(NOISE) if image is None else image).save(path, kind, **options)
    return path


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


UNREAD = pytest.mark.skipif(
    PIL.__version__ < "13", reason="Pillow before 13 does not read the YCbCr TIFF that it writes"
)


@pytest.mark.parametrize(
    "mode", ["L", "1", "P", "RGBA", "LA", "CMYK", pytest.param("YCbCr", marks=UNREAD)]
)
def test_other_modes_of_8_bits_are_converted(tmp_path, mode):
    image = Image.fromarray(NOISE).convert(mode)
    path = stored(tmp_path / "a", "TIFF" if mode in ("CMYK", "YCbCr") else "PNG", image)
    read = read_image(path)
    assert read.shape == NOISE.shape and read.dtype == np.uint8
    with Image.open(path) as again:
        assert again.mode == mode
        assert np.array_equal(read, np.asarray(again.convert("RGB")))


def test_cmyk_is_read_as_rgb(tmp_path):
    path = tmp_path / "print.jpg"
    Image.new("CMYK", (8, 6), (0, 255, 255, 0)).save(path, quality=100)
    image = read_image(path)
    assert image.shape == (6, 8, 3) and image.dtype == np.uint8
    assert (image[..., 0] > 200).all() and (image[..., 1:] < 60).all()  # red


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_alone_is_turned_upright(tmp_path, orientation):
    path = stored(tmp_path / "a.png", exif=turned(orientation))
    upright = ImageOps.exif_transpose(Image.fromarray(NOISE))
    assert np.array_equal(np.asarray(upright), NOISE)  # which has no EXIF
    with Image.open(path) as image:
        assert np.array_equal(read_image(path), np.asarray(ImageOps.exif_transpose(image)))
    assert np.array_equal(read_image(path), NOISE) == (orientation == 1)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("what", ["image", "label"])
def test_turned_beside_each_other_is_refused_not_guessed(tmp_path, orientation, what):
    root = make("gta5", tmp_path)
    path = root / f"{what}s" / "00000.png"
    with Image.open(path) as image:
        stored(path, image=image.copy(), exif=turned(orientation))
    dataset = build_dataset("gta5", "train", root)
    with pytest.raises(ValueError, match=f"{path} .*EXIF orientation {orientation}.*upright"):
        dataset[0]
    assert dataset[1].image.shape == (8, 12, 3)


def test_damaged_exif_costs_no_image(tmp_path):
    exif = turned(6)
    exif[0x0100] = 16  # a number that is about to be none
    path = stored(tmp_path / "a.jpg", "JPEG", exif=exif)
    data = path.read_bytes()
    entry = data.index(struct.pack(">HH", 0x0100, 4))
    path.write_bytes(data[: entry + 2] + struct.pack(">H", 7) + data[entry + 4 :])
    with pytest.raises(struct.error), Image.open(path) as image:
        ImageOps.exif_transpose(image)
    assert read_image(path).shape == (24, 16, 3)


@pytest.mark.parametrize("read", [read_image, read_ids])
@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"no image at all"])
def test_what_is_no_image_is_named(tmp_path, read, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.png cannot be read"):
        read(path)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0, 0.02, 0.3, 0.7, 0.9])
def test_what_is_cut_short_is_named_with_a_remedy(tmp_path, kind, share):
    for read, what in ((read_image, "an image"), (read_ids, "a label")):
        grey = Image.fromarray(NOISE[..., 0])
        path = stored(tmp_path / f"a.{kind}", kind, grey if what == "a label" else None)
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])
        told = f"^{re.escape(str(path))} cannot be read as {what}: .*; copy it anew from where"
        if kind == "WEBP" and what == "a label" and share:
            told = "cannot be read as a label: .*"  # it knows no grey
        with pytest.raises(ValueError, match=told):
            read(path)


@pytest.mark.parametrize("kind", [*FORMATS, "GIF"])
def test_whatever_the_damage_it_is_an_image_or_one_error_that_names_the_file(tmp_path, kind):
    path = stored(tmp_path / "a", kind, **({"exif": turned(6)} if kind in ("PNG", "JPEG") else {}))
    whole, dice = path.read_bytes(), np.random.default_rng(1)
    refused = 0
    for _ in range(200):
        data = bytearray(whole)
        for place in dice.integers(0, min(len(data), dice.choice([64, 300, 10**6])), 4):
            data[place] = dice.integers(256)
        path.write_bytes(data)
        for read in (read_image, read_ids):
            try:
                assert read(path).dtype == np.uint8
            except ValueError as error:
                assert str(error).startswith(f"{path} cannot be read as ")
                refused += 1
    assert refused > 0


def test_an_image_of_too_many_pixels_is_refused_before_it_is_unpacked(tmp_path):
    path = png_file(tmp_path / "bomb.png", (60_000, 60_000), 8, b"")
    with pytest.raises(ValueError, match=f"{path} cannot be read as an image: .*3600000000 pixels"):
        read_image(path)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_more_than_8_bits_are_refused_not_clipped(tmp_path, kind):
    path = stored(tmp_path / "a.tiff", "TIFF", Image.fromarray(np.zeros((8, 12), kind)))
    with pytest.raises(ValueError, match=f"{path} cannot be .*not 8 bits a channel; convert it"):
        read_image(path)
    with pytest.raises(ValueError, match=f"{path} cannot be .*not one channel of ids; store 8-bit"):
        read_ids(path)


def broken_pair(root, what):
    """Spoil every image or label of GTA5's layout; return what the message must say."""
    for number in range(2):
        image, label = root / f"images/0000{number}.png", root / f"labels/0000{number}.png"
        if what == "cut image":
            image.write_bytes(image.read_bytes()[:40])
        elif what == "empty label":
            label.write_bytes(b"")
        elif what == "label of another size":
            label_file(label, [7], (8, 10))
        elif what == "label id out of range":
            label_file(label, [7, 77])
    return {
        "cut image": r"images/0000\d.png cannot be read as an image: .*; copy it anew",
        "empty label": r"labels/0000\d.png cannot be read as a label: .*; copy it anew",
        "label of another size": r"labels/0000\d.png must be of its image's size \(8, 12\)",
        "label id out of range": r"labels/0000\d.png holds label ids \[77\].*known are 0 to 34; ",
    }[what]


def train_on(tmp_path, *words):
    """The words of a short training on GTA5 and Cityscapes' layouts below a folder."""
    words = [*words, "--config", "streets_source", "--device", "cpu"]
    words += ["--data.source", "gta5", "--data.source_root", str(tmp_path / "gta5")]
    words += ["--data.target", "cityscapes", "--data.target_root", str(tmp_path / "city")]
    words += ["--data.crop", "[8, 8]", "--data.patch_crop", "[8, 8]", "--data.rare_class", "false"]
    return train.main([*words, "--run.dir", str(tmp_path / "runs"), "--run.report", "false"])


@pytest.mark.parametrize(
    ("what", "workers"),
    [
        ("cut image", 0),
        ("empty label", 0),
        ("label of another size", 0),
        ("label id out of range", 0),
        ("empty label", 1),
    ],
)
def test_training_ends_with_one_line_that_names_the_file(tmp_path, capfd, what, workers):
    source, target = make("gta5", tmp_path / "gta5"), make("cityscapes", tmp_path / "city")
    make("cityscapes", target, "val")
    told = broken_pair(source, what)
    assert train_on(tmp_path, "--iterations", "2", "--data.num_workers", str(workers)) == 2
    said = capfd.readouterr().err
    assert re.search(f"^error: .*{told}", said, re.MULTILINE), said
    assert "Traceback" not in said and said.count("\n") == 1, said


def test_training_needs_no_label_of_the_targets_training_images(tmp_path):
    make("gta5", tmp_path / "gta5")
    target = make("cityscapes", tmp_path / "city")
    for label in target.glob("gtFine/train/*/*.png"):
        label.unlink()
    make("cityscapes", target, "val")
    assert train_on(tmp_path, "--iterations", "1") == 0
