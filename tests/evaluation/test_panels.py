# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from PIL import Image

from pipa_fast.data.labels import PALETTE
from pipa_fast.evaluation.panels import (
    collect_panels,
    colorize,
    error_picture,
    overlay,
    save_panels,
    spread_indices,
    with_legend,
)


def test_colours_are_the_palettes_and_ignored_is_black():
    painted = colorize(np.array([[0, 13, 255]], np.uint8))
    assert painted.tolist() == [[PALETTE[0].tolist(), PALETTE[13].tolist(), [0, 0, 0]]]
    every = colorize(np.arange(256, dtype=np.uint8)[None])[0]  # datasets of one's own have more
    assert len({tuple(colour) for colour in every[:255].tolist()}) == 255


def test_errors_are_red_and_unlabelled_pixels_are_not():
    image = np.full((1, 3, 3), 128, np.uint8)
    truth = np.array([[0, 1, 255]], np.uint8)
    right, wrong, unlabelled = error_picture(image, truth, np.zeros((1, 3), np.uint8))[0].astype(
        int
    )
    assert right.std() == 0 and unlabelled.std() == 0 and unlabelled[0] < right[0]
    assert wrong[0] > wrong[1] + 80 and wrong[0] > wrong[2] + 80


def test_overlay_blends_and_leaves_ignored_pixels_bare():
    image = np.full((1, 2, 3), 100, np.uint8)
    labels = np.array([[0, 255]], np.uint8)
    assert overlay(image, labels, blend=0.5)[0, 1].tolist() == [100, 100, 100]
    assert np.array_equal(overlay(image, labels, blend=1.0)[0, 0], PALETTE[0])
    with pytest.raises(ValueError, match="blend must be a share"):
        overlay(image, labels, blend=2)


@pytest.mark.parametrize(("length", "count", "expected"), [(10, 2, [2, 7]), (3, 5, [0, 1, 2])])
def test_indices_are_spread(length, count, expected):
    assert spread_indices(length, count) == expected


def test_panels_hold_what_each_network_says(network, make_network, dataset):
    teacher, baseline = make_network(1), make_network(2)
    with_all = collect_panels(network, teacher, dataset, [4, 0], baseline)
    assert [p.name for p in with_all] == ["scene_04", "scene_00"]
    captions = [caption for caption, _ in with_all[0].columns()]
    assert captions == [
        "image",
        "truth",
        "source-only prediction",
        "prediction",
        "teacher's confidence",
        "error",
    ]
    alone = collect_panels(network, None, dataset, [4])[0]
    assert [c for c, _ in alone.columns()][2:4] == ["prediction", "student's confidence"]
    assert np.array_equal(alone.prediction, with_all[0].prediction)
    assert not np.array_equal(alone.confidence, with_all[0].confidence)
    assert alone.confidence.min() >= 1 / 19 and alone.confidence.max() <= 1
    assert alone.accuracy(alone.truth) == 1
    assert network.training and teacher.training


def test_a_teacher_may_return_bare_logits(network, dataset):
    class Bare(type(network)):
        def forward(self, images):
            return super().forward(images).logits

    bare = collect_panels(network, Bare(), dataset, [1])[0]
    assert np.array_equal(
        bare.confidence, collect_panels(network, network, dataset, [1])[0].confidence
    )


def test_the_picture_has_a_row_per_image(network, dataset, tmp_path):
    panels = collect_panels(network, None, dataset, [0, 1, 2])
    with Image.open(save_panels(panels, tmp_path / "panels.png", cell=64)) as picture:
        assert picture.width == 8 + 5 * (64 + 8)
        assert picture.height >= 34 + 3 * (32 + 8)
    with pytest.raises(ValueError, match="panels must be"):
        save_panels([], tmp_path / "none.png")


def test_a_legend_names_its_classes_below_the_picture():
    picture = np.full((20, 300, 3), 77, np.uint8)
    shown = with_legend(picture, [0, 13])
    assert np.array_equal(shown[:20], picture) and shown.shape[1] == 300
    below = {tuple(c) for c in shown[20:].reshape(-1, 3).tolist()}
    assert {tuple(PALETTE[0].tolist()), tuple(PALETTE[13].tolist())} <= below
    assert tuple(PALETTE[10].tolist()) not in below
    lines = with_legend(picture, range(19))
    assert lines.shape[0] > shown.shape[0]  # more classes take more lines
    assert {tuple(c) for c in PALETTE.tolist()} <= {
        tuple(c) for c in lines[20:].reshape(-1, 3).tolist()
    }


def test_a_legend_is_never_cut_at_a_narrow_pictures_side():
    shown = with_legend(np.zeros((4, 10, 3), np.uint8), [6])
    assert np.array_equal(shown[:4, :10], np.zeros((4, 10, 3))) and (shown[:4, 10:] == 255).all()
    assert (shown[:, -1] == 255).all() and (shown[4:] < 100).any()
