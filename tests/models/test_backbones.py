# SPDX-License-Identifier: Apache-2.0
from collections import Counter
from dataclasses import replace

import pytest
import torch

from pipa_fast.models import HRDAConfig, ModelConfig, build_network, network_stride
from pipa_fast.models.backbones import BACKBONES, BackboneEncoder
from pipa_fast.models.encoders import build_encoder

SMALL = ["dinov2_s", "dinov3_s", "convnext_t", "swin_t"]
IMAGES = (2, 3, 64, 96)


@pytest.mark.parametrize("name", SMALL)
def test_maps_are_at_their_strides_and_every_trainable_parameter_is_used(name):
    config = ModelConfig(encoder=name, drop_path=0.0)
    encoder = build_encoder(config)
    maps = encoder(torch.rand(1, 3, 64, 96))
    expected = zip(encoder.channels, encoder.strides, strict=True)
    assert [tuple(x.shape[1:]) for x in maps] == [(c, 64 // s, 96 // s) for c, s in expected]
    assert network_stride(config) == 4
    assert encoder.windowed == (name == "swin_t")
    sum(x.square().sum() for x in maps).backward()
    unused = [n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused


@pytest.mark.parametrize(
    ("name", "millions"),
    [("dinov2_b", 86.6), ("dinov3_s", 21.6), ("convnext_t", 27.8), ("swin_t", 27.5)],
)
def test_sizes_are_the_published_ones(name, millions):
    with torch.device("meta"):
        model = BackboneEncoder(name).model
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.01)


# encoder: the class whose weights the hub has under its name, and what the backbone leaves out
STORED = {
    "dinov2_s": ("Dinov2Model", ()),
    "dinov3_s": ("DINOv3ViTModel", ()),
    "convnext_t": ("ConvNextForImageClassification", ("classifier", "convnext.layernorm")),
    "swin_t": ("SwinForImageClassification", ("classifier", "swin.layernorm", "swin.pooler")),
}


@pytest.mark.parametrize("name", SMALL)
def test_stored_weights_are_loaded_or_refused(name, tmp_path):
    import transformers

    kind, left_out = STORED[name]
    family, settings = BACKBONES[name]
    stored = getattr(transformers, kind)(getattr(transformers, f"{family}Config")(**settings))
    with torch.no_grad():
        for parameter in stored.parameters():
            parameter.normal_()  # biases and norms start as numbers that tell nothing
    stored.save_pretrained(tmp_path / name)
    encoder = BackboneEncoder(name, weights=str(tmp_path / name))
    assert encoder.training and encoder.model.training
    kept = {n: p for n, p in stored.named_parameters() if not n.startswith(left_out)}
    values = {(p.shape, p.double().sum().item()) for p in encoder.model.parameters()}
    for path, parameter in kept.items():
        assert (parameter.shape, parameter.double().sum().item()) in values, path
    larger = next(n for n in BACKBONES if n.startswith(name[:-1]) and n != name)
    with pytest.raises(ValueError, match="model.weights .* do not"):
        BackboneEncoder(larger, weights=str(tmp_path / name))


def test_weights_of_a_deeper_network_or_another_are_refused(tmp_path):
    """Those of the layers that there are would all fit: ConvNeXt-S has three times T's third."""
    import transformers

    depths = {"hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 10, 3]}
    stored = transformers.ConvNextForImageClassification(transformers.ConvNextConfig(**depths))
    stored.save_pretrained(tmp_path / "deeper")
    with pytest.raises(ValueError, match=r"do not fit convnext_t: \d+ unexpected, .*layers\.9\."):
        BackboneEncoder("convnext_t", weights=str(tmp_path / "deeper"))
    config = transformers.Dinov2WithRegistersConfig(**BACKBONES["dinov2_s"].settings)
    transformers.Dinov2WithRegistersModel(config).save_pretrained(tmp_path / "registers")
    with pytest.raises(ValueError, match=r"unexpected, such as embeddings\.register_tokens"):
        BackboneEncoder("dinov2_s", weights=str(tmp_path / "registers"))


@pytest.mark.parametrize("name", SMALL)
def test_nothing_is_drawn_but_stochastic_depth(name):
    """A teacher is in training mode too, for its batch norms, and must not change its mind."""
    encoder, images = build_encoder(ModelConfig(encoder=name, drop_path=0.0)), torch.rand(IMAGES)
    with torch.no_grad():
        training, again = encoder(images), encoder(images)
        expected = encoder.eval()(images)
    for x, y, z in zip(training, again, expected, strict=True):
        assert torch.equal(x, y)
        torch.testing.assert_close(x, z)


@pytest.mark.parametrize("name", SMALL)
def test_cells_are_of_the_strides_for_images_of_any_whole_cells(name):
    """HRDA lays its context beside its detail, and PiPa one crop beside the other, cell by cell."""
    hrda = HRDAConfig(enabled=True, detail=(48, 32))
    network = build_network(ModelConfig(encoder=name, projections=False, hrda=hrda)).eval()
    with torch.no_grad():
        maps = network.encoder(torch.rand(1, 3, 40, 72))
        assert maps[0].shape[2:] == (10, 18)
        assert network(torch.rand(1, 3, 72, 104)).logits.shape == (1, 19, 18, 26)


@pytest.mark.parametrize("name", SMALL)
def test_recomputed_activations_have_the_same_gradients_for_one_more_pass(name):
    torch.manual_seed(0)
    config = ModelConfig(encoder=name, drop_path=0.4)
    plain = build_encoder(config)
    other = build_encoder(replace(config, checkpoint_activations=True))
    other.load_state_dict(plain.state_dict())
    images, kept, calls = torch.rand(IMAGES), [], Counter()

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    sizes, gradients = [], []
    for encoder in (plain, other):
        for layer in encoder.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.register_forward_pre_hook(lambda layer, _: calls.update([layer]))
        kept.clear()
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            maps = encoder(images)
        sizes.append(sum(kept))
        sum(x.square().mean() for x in maps).backward()
        gradients.append([p.grad for p in encoder.parameters() if p.requires_grad])
    assert sizes[1] < sizes[0] / 3
    assert {calls[layer] for layer in other.modules()} <= {0, 1, 2}
    for ours, expected in zip(*reversed(gradients), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("name", SMALL)
def test_touch_reaches_what_a_head_on_the_last_map_leaves_out(name):
    """DDP's reducer waits for the norms and the pyramid of the other maps too."""
    config = ModelConfig(encoder=name, head="deeplabv2", projections=False)
    network = build_network(config)
    network(torch.rand(IMAGES), touch=True).logits.sum().backward()
    assert not [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]


# what an encoder learns of positions, and tokens that are no pixels'
POSITIONS = {
    "dinov2_s": {"position_embeddings", "cls_token"},
    "dinov3_s": {"cls_token", "register_tokens"},
    "convnext_t": set(),
    "swin_t": {"relative_position_bias_table"},
}


@pytest.mark.parametrize("name", SMALL)
def test_norms_and_positions_do_not_decay(name):
    network = build_network(ModelConfig(encoder=name))
    groups = network.parameter_groups(weight_decay=0.1)
    still = {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    layers = [m for m in network.encoder.modules() if isinstance(m, torch.nn.LayerNorm)]
    norms = {id(p) for layer in layers for p in layer.parameters()}
    assert norms and norms <= still
    others = {
        path.split(".")[-1]
        for path, p in network.encoder.named_parameters()
        if id(p) in still - norms
    }
    assert others == POSITIONS[name]
