# SPDX-License-Identifier: Apache-2.0
"""Matching cells of two crops: coordinates fed as features must come back equal."""

import functools

import pytest
import torch

from pipa_fast import ops
from pipa_fast.reference.overlap_pairs import all_pairs


def crops(images, crop, stride, scale=1, reach=3):
    """Boxes of crops that were `scale` times as large in the image, a few cells apart."""
    cell = stride * scale
    cells = torch.tensor([crop[0] // stride, crop[1] // stride])
    first = torch.randint(0, 9, (images, 2)) * cell
    second = first + torch.randint(-reach, reach + 1, (images, 2)) * cell
    corners = torch.stack((first, second), dim=1)
    flips = torch.rand(images, 2) < 0.5
    return torch.cat((corners, corners + cells * cell), dim=2), flips


def coordinates(boxes, flips, size):
    """[B, 2, h, w] for each view: in which image and at which pixel a cell is centred."""
    views = []
    for view in (0, 1):
        maps = []
        for box, flip in zip(boxes[:, view], flips[:, view], strict=True):
            y0, x0, y1, x1 = box.tolist()
            y = y0 + (torch.arange(size[0]) + 0.5) * (y1 - y0) / size[0]
            x = x0 + (torch.arange(size[1]) + 0.5) * (x1 - x0) / size[1]
            crop = torch.stack(torch.meshgrid(y, x, indexing="ij"))
            maps.append(crop.flip(2) if flip else crop)
        views.append(torch.stack(maps) + 10_000 * torch.arange(len(maps))[:, None, None, None])
    return views


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize(("crop", "stride"), [((32, 48), 4), ((24, 24), 8), ((12, 20), 1)])
def test_coordinates_match(crop, stride, scale):
    boxes, flips = crops(6, crop, stride, scale)
    size = (crop[0] // stride, crop[1] // stride)
    every = all_pairs(boxes, flips, crop_size=crop, stride=stride)
    total = sum(map(len, every))
    for num_pairs in (total + 5, total, total // 3, 1):
        pairs = ops.overlap_pairs(
            boxes, flips, crop_size=crop, stride=stride, num_pairs=num_pairs, seed=4
        )
        kept = pairs[0] >= 0
        assert torch.equal(kept, pairs[1] >= 0) and kept.sum() == min(num_pairs, total)
        drawn = set(zip(*(index[kept].tolist() for index in pairs), strict=True))
        assert len(drawn) == kept.sum() and drawn <= {p for own in every for p in own}
        a, b = (
            ops.gather_pixels(view, index[kept], normalize=False)
            for view, index in zip(coordinates(boxes, flips, size), pairs, strict=True)
        )
        assert torch.equal(a, b)


def test_crops_of_one_place_match_in_every_cell():
    boxes = torch.tensor([[[8, 0, 16, 8], [8, 0, 16, 8]]])
    for num_pairs in (4, 5):
        a, b = ops.overlap_pairs(
            boxes,
            torch.tensor([[False, True]]),
            crop_size=8,
            stride=4,
            num_pairs=num_pairs,
            seed=0,
        )
        assert set(zip(a[:4].tolist(), b[:4].tolist(), strict=True)) == {
            (0, 1), (1, 0), (2, 3), (3, 2)
        }  # fmt: skip
        assert a[4:].tolist() == b[4:].tolist() == [-1] * (num_pairs - 4)


def test_images_share_by_area():
    boxes, flips = crops(5, (64, 64), 4, reach=8)
    area = torch.tensor([len(p) for p in all_pairs(boxes, flips, crop_size=(64, 64), stride=4)])
    index, _ = ops.overlap_pairs(boxes, flips, crop_size=64, stride=4, num_pairs=200, seed=0)
    share = torch.bincount(index // 256, minlength=5)
    assert share.sum() == 200 and ((share - 200 * area / area.sum()).abs() < 1).all()


def test_cells_are_equally_likely():
    boxes = torch.tensor([[[0, 0, 24, 24], [8, 4, 32, 28]]])
    flips = torch.tensor([[True, False]])
    every = all_pairs(boxes, flips, crop_size=(24, 24), stride=4)[0]
    counts, draws = torch.zeros(36), 3000
    for seed in range(draws):
        index, _ = ops.overlap_pairs(boxes, flips, crop_size=24, stride=4, num_pairs=5, seed=seed)
        counts[index] += 1
    own = counts[[a for a, _ in every]]
    n = len(every)
    expected = draws * 5 / n
    chi2 = ((own - expected) ** 2).sum() / expected / (1 - 5 / n) * (n - 1) / n
    assert own.sum() == 5 * draws and abs(chi2 - (n - 1)) < 5 * (2 * (n - 1)) ** 0.5


def test_no_overlap_and_no_images():
    far = torch.tensor([[[0, 0, 16, 16], [16, 0, 32, 16]]])
    flips = torch.zeros(1, 2, dtype=torch.bool)
    for boxes, flip in ((far, flips), (far[:0], flips[:0])):
        for index in ops.overlap_pairs(boxes, flip, crop_size=16, stride=4, num_pairs=6, seed=0):
            assert index.tolist() == [-1] * 6


@pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_compile(compiler):
    boxes, flips = crops(3, (92, 64), 4)

    def draw(boxes, flips, seed):
        return ops.overlap_pairs(
            boxes, flips, crop_size=(92, 64), stride=4, num_pairs=50, seed=seed
        )

    compiled = torch.compile(draw, fullgraph=True, backend=compiler)
    for seed in (torch.tensor(1), torch.tensor(-9)):
        got, expected = compiled(boxes, flips, seed), draw(boxes, flips, seed)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_vmap_is_not_taken_for_a_bad_box():
    boxes, flips = crops(3, (32, 32), 4)
    draw = functools.partial(ops.overlap_pairs, crop_size=32, stride=4, num_pairs=50, seed=0)
    with pytest.raises(RuntimeError, match="Batching rule"):
        torch.vmap(draw)(boxes[:, None], flips[:, None])


def test_compile_leaves_the_crop_open():
    compiled = torch.compile(ops.overlap_pairs, fullgraph=True, backend="aot_eager")
    for side, stride, count in ((32, 4, 50), (24, 8, 9), (16, 2, 30)):
        boxes, flips = crops(3, (side, side), stride)
        settings = {"crop_size": side, "stride": stride, "num_pairs": count, "seed": 1}
        found, expected = (f(boxes, flips, **settings) for f in (compiled, ops.overlap_pairs))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_bad_arguments():
    boxes, flips = crops(2, (32, 32), 4)
    shifted, other_size, odd_size = boxes.clone(), boxes.clone(), boxes.clone()
    shifted[1, 1] += 2
    other_size[0, 1, 2:] += 32
    odd_size[0, :, 2] += 3
    given = {"crop_size": 32, "stride": 4, "num_pairs": 9, "seed": 0}
    bad = [
        ("boxes", (boxes[0], flips), {}),
        ("boxes", (boxes[:, :, :3], flips), {}),
        ("boxes", (boxes.float(), flips), {}),
        ("boxes", (shifted, flips), {}),
        ("boxes", (other_size, flips), {}),
        ("boxes", (odd_size, flips), {}),
        ("flips", (boxes, flips[:1]), {}),
        ("flips", (boxes, flips.long()), {}),
        ("flips", (boxes, flips.to("meta")), {}),
        ("crop_size", (boxes, flips), {"crop_size": 30}),
        ("crop_size", (boxes, flips), {"crop_size": None}),
        ("crop_size", (boxes, flips), {"crop_size": (32, None)}),
        ("crop_size", (boxes, flips), {"crop_size": (32, 32, 32)}),
        ("stride", (boxes, flips), {"stride": 0}),
        ("stride", (boxes, flips), {"stride": None}),
        ("num_pairs", (boxes, flips), {"num_pairs": 2.5}),
        ("num_pairs", (boxes, flips), {"num_pairs": -1}),
    ]
    for name, args, settings in bad:
        with pytest.raises(ValueError, match=name):
            ops.overlap_pairs(*args, **{**given, **settings})
