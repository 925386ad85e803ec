# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from PIL import Image

from pipa_fast import ops
from pipa_fast.data.crops import (
    crop_pair,
    iou_of_offsets,
    overlapping_boxes,
    random_box,
    source_box,
)
from pipa_fast.data.files import Box, fitted, resized_part

SIZE, STRIDE = (24, 32), 8


def coordinates(height, width):
    """An image that says where each pixel lies: y, x, 0."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, np.zeros_like(y)], -1).astype(np.uint8)


def iou(a: Box, b: Box):
    def pixels(box):
        return {(y, x) for y in range(box.y0, box.y1) for x in range(box.x0, box.x1)}

    return len(pixels(a) & pixels(b)) / len(pixels(a) | pixels(b))


def pair(seed, image=None, **settings):
    image = coordinates(48, 80) if image is None else image
    return crop_pair(image, SIZE, np.random.default_rng(seed), stride=STRIDE, **settings)


@pytest.mark.parametrize("seed", range(20))
def test_crops_are_what_their_boxes_and_flips_say(seed):
    image = coordinates(48, 80)
    found = pair(seed)
    assert found.crops.shape == (2, *SIZE, 3) and found.boxes.dtype == np.int64
    for crop, (y0, x0, y1, x1), flip in zip(found.crops, found.boxes, found.flips, strict=True):
        expected = image[y0:y1, x0:x1]
        np.testing.assert_array_equal(crop, expected[:, ::-1] if flip else expected)
        assert y0 % STRIDE == x0 % STRIDE == 0 and (y1 - y0, x1 - x0) == SIZE


def test_matched_cells_look_at_the_same_place():
    """The whole chain: crops of a coordinate image, pooled to cells, matched by the op."""
    found = [pair(seed) for seed in range(12)]
    crops = torch.from_numpy(np.stack([p.crops for p in found])).double()  # [B, 2, c, c', 3]
    cells = torch.nn.functional.avg_pool2d(crops.flatten(0, 1).movedim(-1, 1), STRIDE)
    cells = cells.unflatten(0, (len(found), 2))[:, :, :2].movedim(2, -1)  # [B, 2, h, w, (y, x)]
    a, b = ops.overlap_pairs(
        torch.from_numpy(np.stack([p.boxes for p in found])),
        torch.from_numpy(np.stack([p.flips for p in found])),
        crop_size=SIZE,
        stride=STRIDE,
        num_pairs=1000,
        seed=0,
    )
    a, b = a[a >= 0], b[b >= 0]
    assert len(a) > 12
    first, second = (cells[:, view].reshape(-1, 2) for view in (0, 1))
    assert torch.equal(first[a], second[b])
    flips = np.stack([p.flips for p in found])
    assert {tuple(f) for f in flips.tolist()} == {
        (i, j) for i in (True, False) for j in (True, False)
    }


@pytest.mark.parametrize("overlap", [(0.1, 1.0), (0.3, 0.5), (1.0, 1.0)])
def test_overlap_is_in_its_range(overlap):
    for seed in range(30):
        boxes = overlapping_boxes(
            (48, 80), SIZE, np.random.default_rng(seed), stride=STRIDE, overlap=overlap
        )
        assert overlap[0] <= iou(*boxes) <= overlap[1]


def test_the_second_box_reaches_every_place_that_overlaps_enough():
    generator = np.random.default_rng(0)
    places = [Box(y, x, y + 24, x + 32) for y in (0, 8) for x in (0, 8, 16)]
    for overlap in ((0.4, 0.6), (0.4, 1.0)):
        settings = {"stride": STRIDE, "overlap": overlap}
        found = {overlapping_boxes((32, 48), SIZE, generator, **settings) for _ in range(600)}
        fits = {(a, b) for a in places for b in places if overlap[0] <= iou(a, b) <= overlap[1]}
        assert found == fits


def test_iou_of_offsets():
    dy, dx = np.mgrid[-24:25:8, -40:41:8]
    found = iou_of_offsets(dy, dx, SIZE)
    for y, x, value in zip(dy.flat, dx.flat, found.flat, strict=True):
        assert value == pytest.approx(iou(Box(50, 50, 74, 82), Box(50 + y, 50 + x, 74 + y, 82 + x)))


def test_boxes_reach_every_place_and_overlap():
    seen = [pair(seed, overlap=(0.01, 1.0)).boxes for seed in range(400)]
    corners = {tuple(box[:2]) for boxes in seen for box in boxes.tolist()}
    assert corners == {(y, x) for y in range(0, 25, 8) for x in range(0, 49, 8)}


def test_scale_resizes_the_image_before_both_crops():
    """Boxes are of the resized image: its coordinates there are the image's times the factor."""
    for seed in range(8):
        found = pair(seed, scale=(2.0, 2.0))
        assert found.boxes[:, 2].max() <= 96 and found.boxes[:, 3].max() <= 160
        for crop, (y0, x0, _, _), flip in zip(found.crops, found.boxes, found.flips, strict=True):
            crop = crop[:, ::-1] if flip else crop
            y, x = np.mgrid[: SIZE[0], : SIZE[1]]
            inner = (slice(2, -2), slice(2, -2))  # bilinear, and clamped at the image's border
            assert abs(crop[..., 0] - (y + y0) / 2)[inner].max() <= 1
            assert abs(crop[..., 1] - (x + x0) / 2)[inner].max() <= 1
    assert max(pair(seed, scale=(0.5, 2.0)).boxes.max() for seed in range(40)) > 100
    small = pair(0, scale=(0.1, 0.1)).boxes  # never smaller than a crop
    assert small.tolist() == [[0, 0, 24, 32], [0, 0, 24, 32]]


def test_a_box_of_an_image_as_it_is_is_a_view():
    image = coordinates(48, 80)
    cut = resized_part(image, (48, 80), Box(8, 16, 32, 48))
    assert np.shares_memory(cut, image)
    np.testing.assert_array_equal(cut, image[8:32, 16:48])


def test_a_random_box_lies_at_every_place_and_at_no_other():
    generator = np.random.default_rng(0)
    found = {random_box((4, 6, 3), (2, 3), generator) for _ in range(300)}
    assert found == {(y, x, y + 2, x + 3) for y in (0, 1, 2) for x in (0, 1, 2, 3)}
    assert random_box((4, 6, 3), (4, 6), generator) == (0, 0, 4, 6)


def test_source_crop_shows_the_class_it_is_for():
    label = np.zeros((40, 40), np.uint8)
    label[:8, :8] = 5
    for seed in range(20):
        box = source_box(label, (20, 20), np.random.default_rng(seed), wanted=5, min_pixels=10.0)
        plain = source_box(label, (20, 20), np.random.default_rng(seed))
        tried = np.random.default_rng(seed)
        boxes = [random_box(label.shape, (20, 20), tried) for _ in range(11)]
        counts = [(b.of(label) == 5).sum() for b in boxes]
        first = next((i for i, n in enumerate(counts) if n > 10), 10)
        assert box == boxes[first] and plain == boxes[0]


def test_source_crop_avoids_one_class_alone():
    label = np.zeros((40, 40), np.uint8)
    label[:, 20:] = 1
    shares = []
    for seed in range(20):
        box = source_box(label, (10, 10), np.random.default_rng(seed), max_class_share=0.75)
        shares.append(max((box.of(label) == c).mean() for c in (0, 1)))
    assert np.mean(np.array(shares) < 0.75) > 0.5
    ignored = np.full((40, 40), 255, np.uint8)
    source_box(ignored, (10, 10), np.random.default_rng(0), max_class_share=0.75)
    # the share itself is too much: of ten boxes of stripes none will do, and the next is taken
    stripes = np.indices((40, 40), np.uint8)[1] % 2
    box = source_box(stripes, (10, 10), np.random.default_rng(0), max_class_share=0.5)
    tried = np.random.default_rng(0)
    assert box == [random_box((40, 40), (10, 10), tried) for _ in range(11)][-1]


def test_after_ten_crops_that_do_not_fit_the_eleventh_is_taken():
    """As DAFormer's RandomCrop and its rare-class sampler, which look at ten and draw again."""
    label = np.zeros((8, 40), np.uint8)
    label[:, :4] = 1  # of 10 columns, 3 or 4 are of class 1 at x0 = 0 and 1 alone
    for seed in range(200):
        drawn = np.random.default_rng(seed)
        boxes = [random_box(label.shape, (8, 10), drawn) for _ in range(11)]
        expected = next((box for box in boxes[:10] if box.x0 <= 1), boxes[10])
        box = source_box(label, (8, 10), np.random.default_rng(seed), max_class_share=0.75)
        assert box == expected
    # Nothing fits either loop: 11 boxes of 11 boxes are drawn, and the last one stays.
    drawn = np.random.default_rng(1)
    last = [random_box(label.shape, (8, 10), drawn) for _ in range(121)][-1]
    used = np.random.default_rng(1)
    found = source_box(label, (8, 10), used, max_class_share=0.01, wanted=7)
    assert found == last and used.random() == drawn.random()


def test_errors_name_the_argument():
    generator = np.random.default_rng(0)
    for size in ((49, 8), (8, 81), (0, 8), (8, 0)):
        with pytest.raises(ValueError, match=r"crop must be .* than the image, \(48, 80\)"):
            random_box((48, 80, 3), size, generator)
    with pytest.raises(ValueError, match="patch_crop must be"):
        pair(0, image=coordinates(16, 80))
    with pytest.raises(ValueError, match="patch_overlap must be reached"):
        pair(0, image=coordinates(24, 32), overlap=(0.1, 0.5))


@pytest.mark.parametrize("size", [(48, 96), (61, 133), (64, 128), (100, 190), (256, 512)])
def test_a_part_is_what_the_whole_resized_image_shows_there(size):
    """But for rounding, also at the part's own sides, whose filters reach beyond it."""
    image = np.random.default_rng(0).integers(0, 256, (64, 128, 3)).astype(np.uint8)
    height, width = size
    whole = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resized_part(image, size, Box(0, 0, *size)), whole)
    for box in (Box(0, 0, 32, 48), Box(height - 40, width - 40, height, width), Box(7, 9, 40, 60)):
        part = resized_part(image, size, box).astype(int)
        difference = np.abs(part - box.of(whole).astype(int))
        assert part.shape == (box.y1 - box.y0, box.x1 - box.x0, 3)
        assert difference.max() <= 2 and difference.mean() < 0.3


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((1052, 1914), (720, 1280), (704, 1280)),  # GTA5 in DAFormer's recipe
        ((1046, 1914), (720, 1280), (700, 1280)),
        ((1052, 1914), (1440, 2560), (1407, 2560)),  # and in HRDA's
        ((760, 1280, 3), (1520, 2560), (1520, 2560)),  # SYNTHIA
        ((1024, 2048, 3), (512, 1024), (512, 1024)),
        ((3000, 4000), (512, 1024), (512, 683)),  # Mapillary, wide and upright
        ((4000, 3000), (512, 1024), (683, 512)),
        ((1, 4000), (512, 1024), (1, 1024)),
        ((7, 9), None, (7, 9)),
    ],
)
def test_resized_images_keep_their_proportions(shape, size, expected):
    assert fitted(shape, size) == expected
