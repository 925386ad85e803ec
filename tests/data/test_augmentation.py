# SPDX-License-Identifier: Apache-2.0
import colorsys
import dataclasses

import pytest
import torch

from pipa_fast.data import augmentation as module
from pipa_fast.data.augmentation import STRONG, VIEWS, Augmentation, strong_augment

NOTHING = Augmentation(
    brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, jitter=0.0, grey=0.0, blur=0.0
)


def images(batch=8, size=(16, 24)):
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(3))


def augment(x, *, index=None, iteration=5, seed=0, augmentation=STRONG, **options):
    index = torch.arange(len(x)) if index is None else index
    return strong_augment(
        x,
        seed=seed,
        iteration=torch.tensor(iteration),
        index=index,
        augmentation=augmentation,
        **options,
    )


def only(**settings):
    return dataclasses.replace(NOTHING, **settings)


@pytest.mark.parametrize("augmentation", [STRONG, VIEWS])
def test_any_split_of_the_batch_gives_the_same_images(augmentation):
    x = images()
    whole = augment(x, augmentation=augmentation)
    for part in ([0, 1, 2], [3], [7, 4, 6, 5]):
        found = augment(x[part], index=torch.tensor(part), augmentation=augmentation)
        torch.testing.assert_close(found, whole[part], rtol=0, atol=1e-6)


def test_every_argument_changes_the_draw():
    x = images()
    whole = augment(x)
    others = [augment(x, iteration=6), augment(x, seed=1), augment(x, stream="other")]
    assert all(not torch.equal(whole, other) for other in others)


@pytest.mark.parametrize("augmentation", [STRONG, VIEWS])
def test_images_stay_images(augmentation):
    x = torch.cat([images(), torch.zeros(4, 3, 16, 24), torch.ones(4, 3, 16, 24)])
    out = augment(x, augmentation=augmentation)
    assert out.shape == x.shape and out.dtype == x.dtype
    assert out.min() >= 0 and out.max() <= 1 and torch.isfinite(out).all()


def test_shares_of_images_that_change():
    x = images(1).expand(2000, -1, -1, -1)[..., :4, :6].contiguous()
    x = torch.nn.functional.pad(x, (6, 6, 6, 6), mode="replicate")

    def changed(out):
        return (out != x).flatten(1).any(1).float().mean().item()

    assert changed(augment(x, augmentation=only(jitter=0.8, brightness=0.2))) == pytest.approx(
        0.8, abs=0.04
    )
    assert changed(augment(x, augmentation=only(blur=0.5, sigma=(1.0, 1.0)))) == pytest.approx(
        0.5, abs=0.04
    )
    assert changed(augment(x, augmentation=only(grey=0.2))) == pytest.approx(0.2, abs=0.04)
    assert torch.equal(augment(x, augmentation=NOTHING), x)


def test_each_image_has_its_own_draw():
    x = images(1).expand(16, -1, -1, -1)
    out = augment(x, augmentation=only(jitter=1.0, brightness=0.2))
    assert len({round(float(image.mean()), 6) for image in out}) == 16


def test_brightness_contrast_and_saturation_are_what_they_say():
    x = images(400, (4, 4)) * 0.2 + 0.4
    shift = augment(x, augmentation=only(jitter=1.0, brightness=0.2)) - x
    assert shift.flatten(1).std(1).max() < 1e-5
    assert -0.2 <= shift.min() < -0.19 and 0.19 < shift.max() <= 0.2
    factor = augment(x, augmentation=only(jitter=1.0, contrast=0.2)) / x
    assert factor.flatten(1).std(1).max() < 1e-5
    assert 0.8 <= factor.min() < 0.81 and 1.19 < factor.max() <= 1.2
    spread = x.amax(1) - x.amin(1)
    out = augment(x, augmentation=only(jitter=1.0, saturation=0.2))
    ratio = (out.amax(1) - out.amin(1)) / spread
    assert 0.79 <= ratio.min() < 0.82 and 1.18 < ratio.max() <= 1.21
    torch.testing.assert_close(out.amax(1), x.amax(1), rtol=0, atol=1e-4)


def test_colours_about_grey_are_torchvisions():
    x = images(400, (4, 4)) * 0.2 + 0.4
    grey = (x * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)

    def jitter(**settings):
        return augment(x, augmentation=only(jitter=1.0, about_grey=True, **settings))

    def factors(found, centre):
        """What every number's distance from the centre was multiplied by, one for an image."""
        ratio = (found - centre) / (x - centre)
        ratio = ratio.masked_fill((x - centre).abs() < 1e-2, torch.nan).flatten(1)
        one = ratio.nanmedian(1).values
        assert (ratio - one[:, None]).nan_to_num().abs().max() < 5e-3
        assert 0.6 <= one.min() < 0.62 and 1.38 < one.max() <= 1.4
        return one

    factors(jitter(brightness=0.4), torch.zeros(1))
    factors(jitter(contrast=0.4), grey.mean((2, 3), keepdim=True))
    factors(jitter(saturation=0.4), grey)


def test_views_are_blurred_by_opencvs_five_taps():
    point = torch.zeros(1, 3, 9, 9)
    point[..., 4, 4] = 1
    taps = only(blur=1.0, sigma=VIEWS.sigma, taps=VIEWS.taps)
    one = torch.tensor([0, 0, 1, 4, 6, 4, 1, 0, 0]) / 16
    found = augment(point, augmentation=taps)[0, 0]
    torch.testing.assert_close(found, one[:, None] * one[None], rtol=0, atol=5e-3)


def test_hue_turns_and_leaves_grey_alone():
    red = torch.tensor([0.8, 0.2, 0.2]).view(1, 3, 1, 1).expand(400, 3, 4, 4).contiguous()
    out = augment(red, augmentation=only(jitter=1.0, hue=0.2))
    torch.testing.assert_close(out.amax(1), red.amax(1), rtol=0, atol=1e-4)
    hues = [colorsys.rgb_to_hsv(*rgb)[0] for rgb in out[:, :, 0, 0].tolist()]
    turns = [(hue + 0.5) % 1 - 0.5 for hue in hues]  # of a circle
    assert -0.2 <= min(turns) < -0.19 and 0.19 < max(turns) <= 0.2
    grey = torch.full((8, 3, 4, 4), 0.5)
    torch.testing.assert_close(augment(grey, augmentation=only(jitter=1.0, hue=0.2)), grey)


def test_blur_is_a_gaussian_of_sigma_pixels():
    point = torch.zeros(1, 3, 25, 25)
    point[..., 12, 12] = 1
    out = augment(point, augmentation=only(blur=1.0, sigma=(1.15, 1.15)))[0, 0].double()
    distance = (torch.arange(25) - 12).double()
    one = torch.exp(-(distance**2) / (2 * 1.15**2))
    expected = one[:, None] * one[None, :] / one.sum() ** 2
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=2e-5)


def test_sigma_is_drawn_from_its_range():
    point = torch.zeros(400, 3, 15, 15)
    point[..., 7, 7] = 1
    out = augment(point, augmentation=only(blur=1.0, sigma=(0.5, 1.15)))[:, 0, 7].double()
    sigma = (2 * (out[:, 7] / out[:, 8]).log()).rsqrt()  # a pixel beside the centre: exp(-1/2s^2)
    assert 0.4999 < sigma.min() < 0.51 and 1.14 < sigma.max() < 1.1501


def test_no_two_settings_share_a_draw(monkeypatch):
    """Of eight numbers each moves one setting, and each setting is moved by one."""
    x = images(1)
    settings = [
        *(only(jitter=1.0, **{name: 0.2}) for name in ("brightness", "contrast", "saturation")),
        only(jitter=1.0, hue=0.2),
        only(jitter=0.5, brightness=0.2),
        only(grey=0.5),
        only(blur=1.0, sigma=(0.5, 1.15)),
        only(blur=0.5),
    ]

    def made(augmentation, *low):
        draw = torch.full((1, 8), 0.9)
        draw[0, list(low)] = 0.1
        monkeypatch.setattr(module, "uniform", lambda *args: draw)
        return augment(x, augmentation=augmentation)

    moved = [[k for k in range(8) if not torch.equal(made(a, k), made(a))] for a in settings]
    assert sorted(moved) == [[k] for k in range(8)]


def test_grey_has_three_equal_channels():
    out = augment(images(), augmentation=only(grey=1.0))
    assert torch.equal(out[:, 0], out[:, 1]) and torch.equal(out[:, 0], out[:, 2])


def test_distortion_changes_each_of_four_things_in_half_of_the_images():
    """Two greys tell shift and contrast; where these are known, a colour tells the other two."""
    x = torch.tensor([[0.3] * 3, [0.5] * 3, [0.4, 0.3, 0.25]]).T[:, None].expand(4000, 3, 1, 3)
    how = {"seed": 0, "iteration": torch.tensor(7)}
    out = module.distort(x, index=torch.arange(4000), **how)
    grey = out[:, :, 0, :2].mean(1)
    contrast = (grey[:, 1] - grey[:, 0]) / 0.2
    shift = grey[:, 1] / contrast - 0.5
    undone = (out[:, :, 0, 2] / contrast[:, None]).tolist()
    turn, factor = [], []
    for by, pixel in zip(shift.tolist(), undone, strict=True):
        before = colorsys.rgb_to_hsv(0.4 + by, 0.3 + by, 0.25 + by)
        after = colorsys.rgb_to_hsv(*pixel)
        turn.append((after[0] - before[0] + 0.5) % 1 - 0.5)
        factor.append(after[1] / before[1])
    for found, middle, most in (
        (shift, 0.0, 32 / 255),
        (contrast, 1.0, 0.5),
        (torch.tensor(turn), 0.0, 0.1),
        (torch.tensor(factor), 1.0, 0.5),
    ):
        change = found - middle
        assert -most - 1e-4 < change.min() < -0.97 * most
        assert 0.97 * most < change.max() < most + 1e-4
        assert (change.abs() > 1e-4).float().mean().item() == pytest.approx(0.5, abs=0.03)
    part = torch.tensor([17, 3])
    assert torch.equal(module.distort(x[part], index=part, **how), out[part])
    assert module.distort(x[:0], index=part[:0], **how).shape == (0, 3, 1, 3)


def test_distorted_contrast_comes_before_or_after_the_colours(monkeypatch):
    factors = []

    def noted(images, factor):
        factors.append(factor)
        return images

    monkeypatch.setattr(module, "adjust_contrast", noted)
    x, iteration = torch.full((2000, 3, 1, 1), 0.5), torch.tensor(0)
    module.distort(x, seed=0, iteration=iteration, index=torch.arange(2000))
    early, late = (factor != 1 for factor in factors)
    assert not (early & late).any()
    for changed in (early, late):
        assert changed.float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_no_images():
    assert augment(images(0)).shape == (0, 3, 16, 24)
