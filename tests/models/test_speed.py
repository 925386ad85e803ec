# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipa_fast.models import HRDAConfig, ModelConfig, Window, build_network
from pipa_fast.models.encoders import MitEncoder
from pipa_fast.models.resnet import ResNetEncoder

IMAGES = (2, 3, 64, 64)


def gradients(network, images, **how):
    torch.manual_seed(3)
    network.zero_grad()
    out = network(images, **how)
    embeddings = [e[:, 0].mean() for e in (out.pixel, out.patch) if e is not None]
    (out.logits.square().mean() + sum(embeddings)).backward()
    return out.logits.detach(), {n: p.grad for n, p in network.named_parameters()}


def pair(**settings):
    """A network, and the same with other settings of speed."""
    plain = build_network(ModelConfig(encoder="mit_b0", head="daformer", projections=False))
    other = build_network(
        ModelConfig(encoder="mit_b0", head="daformer", projections=False, **settings)
    )
    other.load_state_dict(plain.state_dict())
    return plain, other


@pytest.mark.parametrize("drop_path", [0.0, 0.4])
def test_recomputed_activations_have_the_same_gradients(drop_path):
    """Also with stochastic depth, whose draws the second forward must repeat."""
    plain, other = pair(checkpoint_activations=True)
    for network in (plain, other):
        for module in network.modules():
            if type(module).__name__ == "SegformerDropPath":
                module.drop_prob = drop_path
    images, kept = torch.rand(IMAGES), []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    results, sizes = [], []
    for network in (plain, other):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            torch.manual_seed(3)
            network.encoder(images)
        sizes.append(sum(kept))
        results.append(gradients(network, images))
    assert sizes[1] < sizes[0] / 3
    assert torch.equal(results[0][0], results[1][0])
    for name, gradient in results[0][1].items():
        assert torch.equal(gradient, results[1][1][name]), name


def test_recomputed_activations_of_residual_networks():
    torch.manual_seed(0)
    plain = ResNetEncoder(depths=(1, 1, 1, 1))
    other = ResNetEncoder(depths=(1, 1, 1, 1))
    other.load_state_dict(plain.state_dict())
    other.recompute_activations()
    images = torch.rand(IMAGES)
    for encoder in (plain, other):
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        encoder(images)[-1].sum().backward()
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter.grad, other.get_parameter(name).grad), name


def test_channels_last_is_the_same_network():
    plain, other = pair(channels_last=True)
    weight = other.head.fuse_layer.bottleneck.conv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    images = torch.rand(IMAGES)
    for network in (plain, other):
        network.eval()
    torch.testing.assert_close(other(images).logits, plain(images).logits, rtol=1e-4, atol=1e-5)
    again = other.export().head.fuse_layer.bottleneck.conv.weight
    assert again.is_contiguous(memory_format=torch.channels_last)


def test_attention_of_mit_is_torchs_fused_one_and_the_textbooks():
    torch.manual_seed(0)
    encoder = MitEncoder("mit_b0").eval()
    assert encoder.model.config._attn_implementation == "sdpa"
    images, calls = torch.rand(IMAGES), []
    original = torch.nn.functional.scaled_dot_product_attention

    def counted(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
        fused = encoder(images)
    assert len(calls) == 8
    encoder.model.set_attn_implementation("eager")
    for ours, expected in zip(fused, encoder(images), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_copies_for_a_teacher_and_for_inference_are_compiled_too():
    network = build_network(ModelConfig(compile=True))
    for made in (network, network.export()):
        assert made.encoder._compiled_call_impl
    plain = build_network(ModelConfig()).export()
    assert plain.encoder._compiled_call_impl is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "head", "hrda"), [("streets_s", "light", False), ("mit_b0", "daformer", True)]
)
def test_a_compiled_network_is_the_same_network(encoder, head, hrda):
    """Its gradients too, and for crops of a second and third size, as the patch term has them.

    In float64: float32 gradients of a whole network differ by their order of sums alone, and on
    some CPUs by more than a wrong one might.
    """
    settings = {"encoder": encoder, "head": head, "dropout": 0.0, "drop_path": 0.0}
    settings["hrda"] = HRDAConfig(enabled=hrda, detail=(64, 64))
    plain = build_network(ModelConfig(**settings)).double()
    other = build_network(ModelConfig(**settings, compile=True)).double()
    other.load_state_dict(plain.state_dict())
    assert plain.state_dict().keys() == other.state_dict().keys()
    how = {"embed": ("pixel", "patch"), "window": Window(0, 64, 64, 128) if hrda else None}
    for size in ((128, 128), (128, 192), (192, 128)):
        images = torch.rand(2, 3, *size, dtype=torch.float64)
        (logits, expected), (found, same) = (gradients(n, images, **how) for n in (plain, other))
        torch.testing.assert_close(found, logits, rtol=1e-9, atol=1e-9)
        largest = max(gradient.norm() for gradient in expected.values())
        for name, gradient in expected.items():
            error = (same[name] - gradient).norm()
            assert error <= 1e-8 * gradient.norm() + 1e-10 * largest, name


@pytest.mark.parametrize(
    ("encoder", "head"),
    [("streets_s", "light"), ("mit_b0", "daformer"), ("mit_b0", "segformer")],
)
def test_inference_with_contrast_costs_what_it_costs_without(encoder, head):
    """Projection heads are for training: parameters, flops and outputs are the plain network's."""
    settings = {"encoder": encoder, "head": head}
    with_contrast = build_network(ModelConfig(**settings)).export().eval()
    without = build_network(ModelConfig(**settings, projections=False)).eval()
    without.load_state_dict(with_contrast.state_dict())
    images, measured = torch.rand(IMAGES), []
    for network in (with_contrast, without):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            logits = network(images).logits
        parameters = sum(p.numel() for p in network.parameters())
        measured.append((parameters, counter.get_total_flops(), logits))
    assert measured[0][:2] == measured[1][:2] and measured[0][1] > 0
    assert torch.equal(measured[0][2], measured[1][2])
