# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import torch
from torch import nn

from pipa_fast.models import ModelConfig, build_network, network_stride
from pipa_fast.models.batch_norm import SyncBatchNorm2d

SIZE = (32, 32)


def build(seed=0, **settings):
    torch.manual_seed(seed)
    return build_network(ModelConfig(**settings))


def images(batch=2, size=SIZE):
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(7))


def count(module):
    return sum(p.numel() for p in module.parameters())


TINY = [
    ("streets_s", "light"),
    ("mit_b0", "daformer"),
    ("mit_b0", "light"),
    ("mit_b0", "segformer"),
    ("streets_s", "deeplabv2"),
]


@pytest.mark.parametrize(("encoder", "head"), TINY)
def test_maps_are_at_the_networks_stride_and_embeddings_of_unit_length(encoder, head):
    network = build(encoder=encoder, head=head, pixel_dim=24, patch_dim=16, num_classes=5)
    out = network(images(), embed=("pixel", "patch"))
    assert network.stride == network_stride(ModelConfig(encoder=encoder, head=head))
    h, w = SIZE[0] // network.stride, SIZE[1] // network.stride
    assert out.logits.shape == (2, 5, h, w)
    assert out.pixel.shape == (2, 24, h, w) and out.patch.shape == (2, 16, h, w)
    for embedding in (out.pixel, out.patch):
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2, h, w))
    plain = network(images())
    assert plain.pixel is None and plain.patch is None


def test_streets_s_is_small():
    assert count(build(projections=False)) <= 500_000


@pytest.mark.parametrize(("encoder", "head"), TINY[:2])
@pytest.mark.parametrize("batch_norm", ["batch", "frozen"])
def test_export_is_the_network_that_never_had_projections(encoder, head, batch_norm):
    settings = {"encoder": encoder, "head": head, "batch_norm": batch_norm}
    network = build(**settings)
    network(images(), embed=("pixel", "patch"))  # moves the batch norms' statistics
    exported, plain = network.export(), build(**settings, projections=False)
    assert [n for n, _ in exported.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert count(exported) == count(plain) < count(network)
    # One seed: the segmentation part starts the same, with projections or without.
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, network.get_parameter(name)), name
    assert exported.training
    plain.load_state_dict(exported.state_dict())
    for module in (network, exported, plain):
        module.eval()
    expected = network(images()).logits
    assert torch.equal(exported(images()).logits, expected)
    assert torch.equal(plain(images()).logits, expected)
    assert network.projections.keys() == {"pixel", "patch"}, "export took the network's own heads"


@pytest.mark.parametrize(("encoder", "head"), TINY[:2])
def test_every_parameter_is_in_one_group_and_norms_do_not_decay(encoder, head):
    network = build(encoder=encoder, head=head)
    groups = network.parameter_groups(lr=1e-3, weight_decay=0.1, head_lr_multiplier=5.0)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in network.parameters())
    settings = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    norms = {
        f"{path}.{name}"
        for path, module in network.named_modules()
        if "norm" in type(module).__name__.lower()
        for name, _ in module.named_parameters()
    }
    assert norms
    for name, parameter in network.named_parameters():
        rate = 1e-3 if name.startswith("encoder.") else 5e-3
        assert settings[id(parameter)] == (rate, 0.0 if name in norms else 0.1), name
    torch.optim.AdamW(groups)


@pytest.mark.parametrize("embed", [(), ("pixel",), ("patch",), ("pixel", "patch")])
@pytest.mark.parametrize(
    ("of_others", "features"), [(False, "fused"), (False, "encoder"), (True, "fused")]
)
def test_touch_reaches_every_parameter_and_changes_no_output(embed, of_others, features):
    """Whichever output a loss reads, DDP's reducer waits for all parameters."""
    network = build(num_classes=5, pixel_dim=8, patch_dim=8, pixel_features=features).eval()
    fused = torch.rand(2, network.head.channels, 8, 8) if of_others else None
    plain = network(images(), embed=embed, fused=fused)
    touched = network(images(), embed=embed, fused=fused, touch=True)
    for name in ("logits", *embed):
        assert torch.equal(getattr(plain, name), getattr(touched, name)), name
        network.zero_grad()
        getattr(touched, name).square().sum().backward(retain_graph=True)
        assert all(p.grad is not None for p in network.parameters()), name
    if not embed:
        network.zero_grad()
        plain.logits.sum().backward()
        assert all(p.grad is None for p in network.projections.parameters())


def test_normalises_its_images():
    network = build(projections=False).eval()
    seen = []
    network.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    mean = torch.tensor([0.485, 0.456, 0.406])
    deviation = torch.tensor([0.229, 0.224, 0.225])
    network((mean + 2 * deviation).view(1, 3, 1, 1).expand(1, 3, *SIZE))
    torch.testing.assert_close(seen[0], torch.full((1, 3, *SIZE), 2.0))
    assert not {"mean", "std"} & network.state_dict().keys()


def test_frozen_batch_norm_does_not_see_the_batch():
    network = build(batch_norm="frozen").train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    both = network(images(), embed=("pixel",)).pixel
    alone = network(images()[:1], embed=("pixel",)).pixel
    torch.testing.assert_close(both[:1], alone)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    both.sum().backward()
    assert network.projections["pixel"].layers[1].weight.grad is not None
    batch = build(batch_norm="batch").train()
    assert not torch.allclose(
        batch(images(), embed=("pixel",)).pixel[:1], batch(images()[:1], embed=("pixel",)).pixel
    )


def test_patch_cells_are_means_of_the_fused_map():
    """Two by two, before the projection and its unit length."""
    network = build(patch_stride=8).eval()
    draw = torch.Generator().manual_seed(4)
    fused = torch.randn(2, network.head.channels, 6, 10, generator=draw)
    pooled = fused.unflatten(2, (3, 2)).unflatten(4, (5, 2)).mean((3, 5))
    found = network(images(), embed=("pixel", "patch"), fused=fused)
    expected = torch.nn.functional.normalize(network.projections["patch"].layers(pooled), dim=1)
    torch.testing.assert_close(found.patch, expected, rtol=1e-5, atol=1e-6)
    assert found.pixel.shape[2:] == (6, 10)
    with pytest.raises(ValueError, match="model.patch_stride must be a multiple of 4.*; got 6"):
        build(patch_stride=6)


@pytest.mark.parametrize("encoder", ["streets_s", "mit_b0"])
def test_pixels_of_the_encoder_are_its_maps_corner_on_corner(encoder):
    """PiPa's `encoder_decoder.py`: enlarged to the finest map and joined, then projected."""
    network = build(encoder=encoder, pixel_features="encoder").eval()
    maps = [x.detach().double() for x in network.encode(images())]
    (h, w), joined = maps[0].shape[2:], []
    for x in maps:
        for axis, n in ((2, h), (3, w)):
            at = torch.arange(n) * (x.shape[axis] - 1) / (n - 1)
            low = at.long().clamp(max=max(x.shape[axis] - 2, 0))
            high = (low + 1).clamp(max=x.shape[axis] - 1)
            share = (at - low).view(-1, 1) if axis == 2 else at - low
            x = (1 - share) * x.index_select(axis, low) + share * x.index_select(axis, high)
        joined.append(x)
    layers = copy.deepcopy(network.projections["pixel"].layers).double()
    assert layers[0].weight.shape[:2] == (sum(network.encoder.channels),) * 2
    expected = torch.nn.functional.normalize(layers(torch.cat(joined, 1)), dim=1)
    found = network(images(), embed=("pixel", "patch"))
    torch.testing.assert_close(found.pixel.double(), expected, rtol=1e-4, atol=1e-5)
    found.pixel.sum().backward()
    assert all(p.grad is None for p in network.head.parameters())
    with pytest.raises(ValueError, match="fused must be None for pixel embeddings"):
        network(images(), embed=("pixel",), fused=torch.rand(2, network.head.channels, h, w))


def test_sync_batch_norm_is_in_its_place():
    kinds = {type(m) for m in build(batch_norm="sync").modules()}
    assert SyncBatchNorm2d in kinds and nn.BatchNorm2d not in kinds


def test_streets_s_has_no_batch_statistics():
    """Any number of ranks must compute the same."""
    network = build(projections=False).train()
    torch.testing.assert_close(
        network(images()).logits[:1], network(images()[:1]).logits, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("encoder", "head"), TINY[:2])
def test_autocast(encoder, head, dtype):
    network = build(encoder=encoder, head=head)
    full = network(images(), embed=("pixel",))
    with torch.autocast("cpu", dtype):
        half = network(images(), embed=("pixel",), touch=True)
    assert half.logits.dtype == dtype and half.pixel.dtype == torch.float32
    torch.testing.assert_close(half.pixel.norm(dim=1), torch.ones_like(half.pixel[:, 0]))
    assert torch.cosine_similarity(half.pixel, full.pixel, dim=1).mean() > 0.9
    (half.logits.float().mean() + half.pixel[:, 0].mean()).backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_length_of_tiny_features_is_taken_in_float32():
    network = build()
    head = network.projections["pixel"]
    with torch.no_grad():
        for parameter in head.layers[3].parameters():
            parameter.mul_(1e-6)
    with torch.autocast("cpu", torch.float16):
        rows = head(torch.rand(1, network.head.channels, 2, 2))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(1, 2, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "mit_b6"}, "model.encoder must be one of streets_s"),
        ({"head": "heavy"}, "model.head must be one of"),
        ({"head_channels": 32}, "model.head_channels must be None but for segformer"),
        ({"dilations": (6, 12)}, "model.dilations must be None but for deeplabv2"),
        ({"head": "deeplabv2", "dilations": (6, 0)}, "model.dilations must be positive"),
        ({"batch_norm": "group"}, "model.batch_norm must be one of"),
        ({"num_classes": 0}, "model.num_classes must be"),
        ({"pixel_dim": 513}, "model.pixel_dim must be in 1 ... 512"),
        ({"pixel_features": "deep"}, "model.pixel_features must be one of fused, encoder"),
        ({"dropout": 1.0}, "model.dropout must be a probability"),
        ({"weights": "somewhere"}, "model.weights must be None for streets_s"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**settings)


def test_bad_calls_are_named():
    network = build(projections=False)
    with pytest.raises(ValueError, match="embed must be of nothing"):
        network(images(), embed=("pixel",))
    with pytest.raises(ValueError, match="images must be of shape"):
        network(torch.rand(2, 1, 32, 32))
    with pytest.raises(ValueError, match="images must be of a float dtype"):
        network(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
