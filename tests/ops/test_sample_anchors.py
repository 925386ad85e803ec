# SPDX-License-Identifier: Apache-2.0
"""How many anchors each class gives, that chance is uniform, and what the op promises."""

from collections import Counter

import pytest
import torch

from pipa_fast import ops
from pipa_fast.reference.sample_anchors import group_sizes


def maps(shape=(3, 12, 16), classes=5, wrong=0.3):
    labels = torch.randint(0, classes, shape)
    labels[torch.rand(shape) < 0.1] = 255
    guesses = torch.randint(0, classes, shape)
    return labels, torch.where(torch.rand(shape) < wrong, guesses, labels)


def drawn_sizes(labels, predictions, index, anchor_labels):
    """Anchors by (image, class, hard), once it is known that they are what they claim to be."""
    kept = anchor_labels != 255
    count = int(kept.sum())
    assert kept[:count].all() and not kept[count:].any() and not index[count:].any()
    index, anchor_labels = index[:count], anchor_labels[:count]
    assert index.unique().numel() == count, "with replacement"
    assert torch.equal(labels.flatten()[index], anchor_labels)
    hard = predictions.flatten()[index] != anchor_labels
    image = index // labels[0].numel()
    return Counter(zip(image.tolist(), anchor_labels.tolist(), hard.tolist(), strict=True))


@pytest.mark.parametrize("num_anchors", [0, 7, 40, 200, 1024])
@pytest.mark.parametrize("max_per_class", [5, 100])
@pytest.mark.parametrize("hard_fraction", [0.5, 0.0, 1.0, 0.29])
@pytest.mark.parametrize("wrong", [0.3, 0.0, 1.0])
def test_exact_counts(num_anchors, max_per_class, hard_fraction, wrong):
    labels, predictions = maps(wrong=wrong)
    settings = {
        "num_anchors": num_anchors, "max_per_class": max_per_class, "hard_fraction": hard_fraction
    }  # fmt: skip
    index, anchor_labels = ops.sample_anchors(labels, predictions, seed=3, **settings)
    assert index.shape == anchor_labels.shape == (num_anchors,)
    assert index.dtype == anchor_labels.dtype == torch.int64
    expected = group_sizes(labels, predictions, ignore_index=255, **settings)
    got = drawn_sizes(labels, predictions, index, anchor_labels)
    assert got == Counter({k: v for k, v in expected.items() if v})


def test_rare_classes_and_quotas():
    """Two images, three (image, class) pairs, 30 anchors: ten for each, if there are ten."""
    labels = torch.full((2, 4, 10), 255)
    labels[0, 0], labels[0, 1, :3], labels[1] = 6, 2, 6
    predictions = torch.full_like(labels, 6)
    index, anchor_labels = ops.sample_anchors(labels, predictions, seed=0, num_anchors=30)
    sizes = drawn_sizes(labels, predictions, index, anchor_labels)
    # all right in class 6: easy fills up; all wrong in class 2: the three that there are
    assert sizes == {(0, 6, False): 10, (0, 2, True): 3, (1, 6, False): 10}


def test_labels_may_have_31_bits():
    labels = torch.tensor([[[-(2**30), 2**30 - 1, 255]]])
    index, anchor_labels = ops.sample_anchors(labels, labels, seed=0, num_anchors=2)
    assert index.tolist() == [0, 1] and anchor_labels.tolist() == [-(2**30), 2**30 - 1]
    for value in (-(2**30) - 1, 2**30):
        with pytest.raises(ValueError, match="labels must be in"):
            ops.sample_anchors(labels.fill_(value), labels, seed=0)


@pytest.mark.parametrize("value", [255, 1])
def test_nothing_to_draw_from(value):
    labels = torch.full((2, 3, 3), value)
    index, anchor_labels = ops.sample_anchors(labels, labels, seed=0, num_anchors=1)
    assert index.tolist() == [0] and anchor_labels.tolist() == [255]  # 2 pairs, 1 anchor: quota 0
    for shape in ((0, 3, 3), (2, 0, 3)):
        index, anchor_labels = ops.sample_anchors(
            labels.new_zeros(shape), labels.new_zeros(shape), seed=0, num_anchors=4
        )
        assert index.tolist() == [0] * 4 and anchor_labels.tolist() == [255] * 4


def test_every_pixel_of_a_group_is_equally_likely():
    """Chi-square over 4,000 seeds; 16 hard and 24 easy pixels of one class, 4 and 4 drawn."""
    labels = torch.zeros(2, 5, 8, dtype=torch.int64)
    predictions = torch.zeros_like(labels)
    predictions[:, :, ::5] = 1  # two of eight columns
    predictions[:, 0] = 1
    draws = 4000
    counts, together = torch.zeros(80), torch.zeros(80)
    for seed in range(draws):
        index, _ = ops.sample_anchors(labels, predictions, seed=seed, num_anchors=16)
        counts[index] += 1
        together[index] += float((index == 1).any())
    assert counts.sum() == 16 * draws
    for image in (0, 1):
        own = slice(40 * image, 40 * image + 40)
        for hard in (True, False):
            group = counts[own][(predictions[image] == int(hard)).flatten()]
            n = group.numel()
            expected = draws * 4 / n
            # a draw of 4 without replacement varies less than 4 draws, by (n - 4)/(n - 1)
            chi2 = ((group - expected) ** 2).sum() / expected / (1 - 4 / n)
            # mean n - 1, variance 2(n - 1): five deviations either way
            chi2 = chi2 * (n - 1) / n
            assert abs(chi2 - (n - 1)) < 5 * (2 * (n - 1)) ** 0.5, (image, hard, chi2)
    # what one image gives is independent of what the other gives
    other = together[40:][(predictions[1] == 1).flatten()]
    hard_pixels = int((predictions[1] == 1).sum())
    expected = counts[1] * 4 / hard_pixels
    assert ((other - expected).abs() < 5 * expected**0.5).all()


def test_seed():
    labels, predictions = maps()
    draw = lambda seed: ops.sample_anchors(labels, predictions, seed=seed, num_anchors=60)[0]  # noqa: E731
    assert torch.equal(draw(5), draw(5))
    assert torch.equal(draw(5), draw(torch.tensor(5)))
    assert len({tuple(draw(seed).tolist()) for seed in (0, 1, -1, 2**63, 2**62, 10**30)}) == 6
    assert torch.equal(draw(2**64 + 7), draw(7))


def test_a_seed_for_each_image_frees_it_of_its_batch():
    labels, predictions = maps()
    seeds = torch.tensor([11, 12, 13])
    whole, _ = ops.sample_anchors(labels, predictions, seed=seeds, num_anchors=10**6)
    pixels = labels[0].numel()
    alone, alone_labels = ops.sample_anchors(
        labels[1:2], predictions[1:2], seed=seeds[1:2], num_anchors=10**6
    )
    ours = whole[(whole >= pixels) & (whole < 2 * pixels)] - pixels
    assert torch.equal(ours, alone[alone_labels != 255])


def test_integer_dtypes():
    labels, predictions = maps()
    expected = ops.sample_anchors(labels, predictions, seed=1)
    assert expected[0].shape == (1024,)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        got = ops.sample_anchors(labels.to(dtype), predictions.to(dtype), seed=1)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_compile(compiler):
    labels, predictions = maps()

    def draw(labels, predictions, seed):
        return ops.sample_anchors(labels, predictions, seed=seed, num_anchors=60)

    compiled = torch.compile(draw, fullgraph=True, backend=compiler)
    for seed in (torch.tensor(4), torch.tensor(-9)):
        got, expected = compiled(labels, predictions, seed), draw(labels, predictions, seed)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_vmap_is_not_taken_for_a_bad_label():
    labels = maps()[0][:, None]  # images one by one
    with pytest.raises(RuntimeError, match="Batching rule"):
        torch.vmap(lambda one: ops.sample_anchors(one, one, seed=0))(labels)


def test_bad_arguments():
    labels, predictions = maps()
    bad = [
        ("labels", (labels[0], predictions), {}),
        ("labels", (labels.float(), predictions), {}),
        ("predictions", (labels, predictions[:2]), {}),
        ("predictions", (labels, predictions.float()), {}),
        ("num_anchors", (labels, predictions), {"num_anchors": -1}),
        ("num_anchors", (labels, predictions), {"num_anchors": "a"}),
        ("num_anchors", (labels, predictions), {"num_anchors": 10.5}),
        ("max_per_class", (labels, predictions), {"max_per_class": -1}),
        ("max_per_class", (labels, predictions), {"max_per_class": None}),
        ("hard_fraction", (labels, predictions), {"hard_fraction": "half"}),
        ("hard_fraction", (labels, predictions), {"hard_fraction": 1.5}),
        ("seed", (labels, predictions), {"seed": 0.5}),
        ("seed", (labels, predictions), {"seed": torch.zeros(2, dtype=torch.int64)}),
        ("seed", (labels, predictions), {"seed": torch.zeros(3)}),
        ("seed", (labels, predictions), {"seed": True}),
    ]
    for name, args, settings in bad:
        with pytest.raises(ValueError, match=name):
            ops.sample_anchors(*args, **{"seed": 0, **settings})
