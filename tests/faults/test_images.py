# SPDX-License-Identifier: Apache-2.0
"""Images that are unlike others: read rightly, or refused by name (more in tests/data)."""

import numpy as np
import pytest
from PIL import Image

from pipa_fast.data.files import read_ids, read_image


def test_cmyk_is_read_as_rgb(tmp_path):
    path = tmp_path / "print.jpg"
    Image.new("CMYK", (8, 6), (0, 255, 255, 0)).save(path, quality=100)
    image = read_image(path)
    assert image.shape == (6, 8, 3) and image.dtype == np.uint8
    assert (image[..., 0] > 200).all() and (image[..., 1:] < 60).all()  # red


@pytest.mark.parametrize("orientation, turned", [(1, False), (3, False), (6, True), (8, True)])
def test_a_photo_stands_upright(tmp_path, orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "phone.jpg"
    Image.new("RGB", (8, 6)).save(path, exif=exif)
    assert read_image(path).shape == ((8, 6, 3) if turned else (6, 8, 3))


@pytest.mark.parametrize("read", [read_image, read_ids])
@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"no image at all"])
def test_what_is_no_image_is_named(tmp_path, read, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.png cannot be read"):
        read(path)


def test_an_image_too_large_to_be_one_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    path = tmp_path / "bomb.png"
    Image.new("RGB", (8, 6)).save(path)
    with pytest.raises(ValueError, match=r"bomb\.png cannot be read"):
        read_image(path)
