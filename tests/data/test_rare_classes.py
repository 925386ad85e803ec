# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from pipa_fast.data.rare_classes import RareClassSampler, class_counts, class_probabilities
from pipa_fast.data.sample import Sample


def scene(**pixels):
    """A label of one row with that many pixels of each class."""
    row = np.concatenate([np.full(n, int(c[1:]), np.uint8) for c, n in pixels.items()])
    return Sample(np.zeros((1, len(row), 3), np.uint8), row[None], "scene")


class Scenes(list):
    def label(self, index):
        return self[index].label


SCENES = Scenes([scene(c0=90, c255=10), scene(c0=80, c3=20), scene(c3=1, c7=4, c0=95)])


def test_counts_per_image_and_class():
    counts = class_counts(SCENES)
    assert counts.shape == (3, 255)
    assert counts[:, [0, 3, 7]].tolist() == [[90, 0, 0], [80, 20, 0], [95, 1, 4]]
    assert counts.sum() == 290


@pytest.mark.parametrize("temperature", [0.001, 0.1, 1.0])
def test_probabilities_are_daformers(temperature):
    counts = np.array([500, 499, 0, 1])
    frequency = torch.tensor([0.5, 0.499, 0.001], dtype=torch.float64)
    expected = torch.softmax((1 - frequency) / temperature, 0)
    found = class_probabilities(counts, temperature)
    np.testing.assert_allclose(found[[0, 1, 3]], expected, rtol=1e-12)
    assert found[2] == 0 and found.sum() == pytest.approx(1)


def test_classes_are_drawn_with_their_probabilities_and_images_show_them():
    counts = class_counts(SCENES)
    sampler = RareClassSampler(counts, temperature=0.5, min_pixels=1)
    generator = np.random.default_rng(0)
    picks = [sampler.pick(generator) for _ in range(4000)]
    labels = np.array([pick.label for pick in picks])
    for label, probability in zip(sampler.classes, sampler.probabilities, strict=True):
        assert (labels == label).mean() == pytest.approx(probability, abs=0.03)
    images = {label: {p.image for p in picks if p.label == label} for label in (0, 3, 7)}
    assert images == {0: {0, 1, 2}, 3: {1}, 7: {2}}


def test_a_class_that_no_image_shows_well_comes_from_those_that_hold_it():
    sampler = RareClassSampler(class_counts(SCENES), temperature=0.5, min_pixels=50)
    generator = np.random.default_rng(0)
    picks = {(p.label, p.image) for p in (sampler.pick(generator) for _ in range(500))}
    assert picks == {(0, 0), (0, 1), (0, 2), (3, 1), (3, 2), (7, 2)}


def test_one_labelled_pixel_is_enough_and_none_is_refused():
    assert class_probabilities(np.array([0, 1]), 0.01).tolist() == [0, 1]
    with pytest.raises(ValueError, match="counts must be of at least one labelled pixel"):
        class_probabilities(np.zeros(3), 0.01)
