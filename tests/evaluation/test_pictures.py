# SPDX-License-Identifier: Apache-2.0
import struct
import sys

import numpy as np
import pytest
from PIL import Image

from pipa_fast.evaluation.pictures import find_pictures, is_video, read_frames


def save(path, grey: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 6, 3), grey, np.uint8)).save(path)


def test_pictures_come_by_name_and_are_read_when_asked(tmp_path):
    save(tmp_path / "b.png", 7)
    save(tmp_path / "a.JPEG")
    save(tmp_path / "deep" / "er" / "c.png", 9)
    (tmp_path / "._b.png").write_bytes(b"attributes")
    assert [p.name for p in find_pictures(tmp_path)] == ["a", "b"]
    found = find_pictures(tmp_path, recursive=True)
    assert [p.name for p in found] == ["a", "b", "deep/er/c"]
    save(tmp_path / "b.png", 8)  # after the folder was read
    assert [int(p.read()[0, 0, 0]) for p in found] == [0, 8, 9]


def test_one_file_is_an_image_or_a_video(tmp_path):
    save(tmp_path / "a.png", 3)
    (tmp_path / "drive.mp4").write_bytes(b"")
    (only,) = find_pictures(tmp_path / "a.png")
    assert only.name == "a" and only.read().shape == (4, 6, 3)
    assert is_video(tmp_path / "drive.mp4")
    assert not is_video(tmp_path / "a.png") and not is_video(tmp_path)
    assert not is_video(tmp_path / "nowhere.mp4")


def test_where_there_is_nothing_to_find(tmp_path):
    save(tmp_path / "deep" / "a.png")
    with pytest.raises(ValueError, match="must hold .png, .jpg, .jpeg files; --recursive looks"):
        find_pictures(tmp_path)
    with pytest.raises(ValueError, match="must be a directory of images or a file"):
        find_pictures(tmp_path / "nowhere")


def test_equal_names_in_one_folder_collide_and_in_two_do_not(tmp_path):
    save(tmp_path / "x" / "a.png")
    save(tmp_path / "y" / "a.png")
    assert len(find_pictures(tmp_path, recursive=True)) == 2
    save(tmp_path / "y" / "a.jpg")
    with pytest.raises(ValueError, match="a.jpg and a.png would share an output"):
        find_pictures(tmp_path, recursive=True)


def test_a_video_without_its_library_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)  # as if it were not installed
    with pytest.raises(ValueError, match="drive.mp4 .* PyAV is needed: pip install av"):
        next(read_frames(tmp_path / "drive.mp4"))


def test_frames_are_those_that_were_filmed(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "drive.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuvj420p"
        for grey in (0, 100, 200):
            pixels = np.full((32, 64, 3), grey, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    pictures = list(read_frames(path))
    assert [p.name for p in pictures] == ["drive_000000", "drive_000001", "drive_000002"]
    for picture, grey in zip(pictures, (0, 100, 200), strict=True):
        frame = picture.read()
        assert frame.shape == (32, 64, 3) and frame.dtype == np.uint8
        assert abs(frame.astype(int) - grey).max() <= 12


def test_frames_that_were_filmed_upright_and_stored_lying_are_turned(tmp_path):
    """A track's matrix in an MP4 file tells how it is shown: here a quarter turn to the right."""
    av = pytest.importorskip("av")
    path = tmp_path / "phone.mp4"
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:16, :16] = 255  # top left as stored, top right as shown
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    one = 1 << 16
    lying = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", 0, one, 0, -one, 0, 0, 32 * one, 0, 1 << 30)
    content = path.read_bytes()
    start = content.index(lying, content.index(b"tkhd"))  # the movie's own matrix stands before it
    path.write_bytes(content[:start] + turned + content[start + len(turned) :])
    frame = next(read_frames(path)).read()
    assert frame.shape == (64, 32, 3)
    assert frame[4, -4].min() > 200 and frame[4, 4].max() < 50


def test_a_file_that_is_no_video_is_named(tmp_path):
    pytest.importorskip("av")
    (tmp_path / "notes.txt").write_text("no video")
    with pytest.raises(ValueError, match="notes.txt cannot be read as a video"):
        next(read_frames(tmp_path / "notes.txt"))
