# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest
import torch

from pipa_fast.models import HRDAConfig, ModelConfig, Window, build_network
from pipa_fast.models.heads import DAFormerHead, LightHead
from pipa_fast.models.hrda import fuse, sliding_windows

WINDOW = Window(16, 32, 48, 64)


def a_network(encoder="streets_s", head="light", **settings):
    torch.manual_seed(0)
    hrda = HRDAConfig(enabled=True, detail=(32, 32))
    return build_network(ModelConfig(encoder=encoder, head=head, hrda=hrda, **settings))


def enlarged(x):
    """Bilinear, twice the size, corners not aligned: cell k lies at k/2 - 1/4 of the small map."""
    for axis in (-2, -1):
        n = x.shape[axis]
        at = np.arange(2 * n) / 2 - 0.25
        low = np.floor(at).astype(int)
        share = (at - low).reshape([-1 if a == axis % x.ndim else 1 for a in range(x.ndim)])
        lower = np.take(x, np.clip(low, 0, n - 1), axis)
        upper = np.take(x, np.clip(low + 1, 0, n - 1), axis)
        x = (1 - share) * lower + share * upper
    return x


def test_fusion_is_equation_7():
    generator = np.random.default_rng(0)
    context, detail = generator.normal(size=(2, 3, 8, 8)), generator.normal(size=(2, 3, 8, 8))
    attention = generator.random((2, 3, 8, 8))
    window = Window(8, 16, 40, 48)  # of 64 x 64 pixels: cells of 8 in the context, 4 in the detail
    inside, placed = np.zeros_like(attention), np.zeros((2, 3, 16, 16))
    inside[:, :, 1:5, 2:6] = attention[:, :, 1:5, 2:6]
    placed[:, :, 2:10, 4:12] = detail
    expected = enlarged((1 - inside) * context) + enlarged(inside) * placed
    made = fuse(*map(torch.from_numpy, (context, detail, attention)), window, 8)
    np.testing.assert_allclose(made.numpy(), expected, atol=1e-12)


def test_far_from_the_window_there_is_only_context():
    network = a_network().eval()
    images = torch.rand(1, 3, 64, 128)
    with torch.no_grad():
        outputs = network(images, window=Window(0, 0, 32, 32))
        context = network(images, context_only=True).logits
    expected = torch.from_numpy(enlarged(context.double().numpy())).float()
    torch.testing.assert_close(outputs.logits[..., 12:], expected[..., 12:])
    assert not torch.allclose(outputs.logits[..., :8, :8], expected[..., :8, :8])


def test_the_context_is_the_mean_of_squares_of_pixels():
    images = torch.rand(2, 3, 16, 32)
    squares = images.view(2, 3, 8, 2, 16, 2).mean((3, 5))
    torch.testing.assert_close(a_network().context(images), squares)


@pytest.mark.parametrize(
    ("image", "size", "starts"),
    [
        ((1024, 1024), (512, 512), [(0, 256, 512), (0, 256, 512)]),
        ((720, 720), (512, 512), [(0, 208), (0, 208)]),
        ((512, 600), (512, 512), [(0,), (0, 88)]),
        ((40, 64), (64, 64), [(0,), (0,)]),
    ],
)
def test_windows_overlap_by_half_and_end_at_the_border(image, size, starts):
    windows = sliding_windows(image, size)
    assert [(w.y0, w.x0) for w in windows] == list(itertools.product(*starts))
    seen = torch.zeros(image)
    for window in windows:
        window.of(seen).add_(1)
    assert seen.min() == 1


def test_without_a_window_the_detail_is_the_mean_of_all_windows():
    network = a_network().eval()
    images = torch.rand(2, 3, 64, 48)
    with torch.no_grad():
        stages = network.encode(network.context(images))
        context = network.head.classify(network.head(stages))
        attention = torch.sigmoid(network.attention.classify(network.attention(stages)))
        total, count = torch.zeros(2, 19, 16, 12), torch.zeros(16, 12)
        for y, x in itertools.product((0, 16, 32), (0, 16)):
            one = network.encode(images[:, :, y : y + 32, x : x + 32])
            at = (..., slice(y // 4, y // 4 + 8), slice(x // 4, x // 4 + 8))
            total[at] += network.head.classify(network.head(one))
            count[at[0], at[1], at[2]] += 1
        expected = fuse(context, total / count, attention, None, 8)
        torch.testing.assert_close(network(images).logits, expected, atol=1e-5, rtol=1e-5)


def test_embeddings_show_the_window_and_the_context():
    outputs = a_network()(torch.rand(2, 3, 64, 128), embed=("pixel", "patch"), window=WINDOW)
    assert outputs.logits.shape == (2, 19, 16, 32)
    assert outputs.detail is not None and outputs.detail.shape == (2, 19, 8, 8)
    assert outputs.pixel is not None and outputs.pixel.shape[2:] == (8, 8)
    assert outputs.patch is not None and outputs.patch.shape[2:] == (8, 16)
    assert outputs.window == WINDOW


def test_pixels_of_the_encoder_are_the_windows():
    network = a_network(pixel_features="encoder").eval()
    images = torch.rand(2, 3, 64, 128)
    found = network(images, embed=("pixel",), window=WINDOW).pixel
    stages = network.encode(WINDOW.of(images))
    torch.testing.assert_close(found, network.projections["pixel"](stages[0], stages))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"embed": ("pixel",)}, "pixel"),
        ({"embed": ("pixel",), "window": WINDOW, "fused": torch.rand(1, 48, 8, 16)}, "pixel"),
        ({"embed": ("depth",), "window": WINDOW}, "embed must be of pixel, patch"),
        ({"window": Window(0, 0, 32, 160)}, "window"),
        ({"window": Window(4, 0, 36, 32)}, "window"),
    ],
)
def test_what_cannot_be_looked_at_is_told(how, message):
    with pytest.raises(ValueError, match=message):
        a_network()(torch.rand(1, 3, 64, 128), **how)


def test_images_off_the_grid_are_told():
    for size in ((60, 128), (64, 124)):
        with pytest.raises(ValueError, match="multiples of 8"):
            a_network()(torch.rand(1, 3, *size))


def test_windows_off_the_grid_are_told():
    with pytest.raises(ValueError, match=r"model\.hrda\.detail"):
        build_network(ModelConfig(hrda=HRDAConfig(enabled=True, detail=(40, 32))))


@pytest.mark.parametrize("of_others", [False, True])
def test_touch_reaches_every_parameter_whatever_the_loss_reads(of_others):
    network = a_network()
    fused = torch.rand(2, network.head.channels, 8, 8) if of_others else None
    outputs = network(torch.rand(2, 3, 64, 64), embed=("patch",), fused=fused, touch=True)
    outputs.patch.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_attention_is_made_by_a_head_of_the_networks_kind():
    assert isinstance(a_network().attention, LightHead)
    assert isinstance(a_network("mit_b0", "daformer").attention, DAFormerHead)


def test_every_parameter_is_in_one_group_and_attention_learns_as_heads_do():
    network = a_network("mit_b0", "daformer")
    groups = {g["name"]: {id(p) for p in g["params"]} for g in network.parameter_groups()}
    assert sum(map(len, groups.values())) == len(list(network.parameters()))
    heads = groups["heads"] | groups["heads.norms"]
    assert all(id(p) in heads for p in network.attention.parameters())


def test_the_rest_is_the_same_with_projection_heads_and_without():
    with_heads, without = a_network(projections=True), a_network(projections=False)
    for name, value in without.state_dict().items():
        assert torch.equal(value, with_heads.state_dict()[name]), name
