# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F

from pipa_fast.models import ModelConfig, build_network, network_stride
from pipa_fast.models.resnet import Bottleneck, ResNetEncoder


def test_parameters_are_named_and_shaped_as_in_mmsegmentation():
    with torch.device("meta"):
        state = ResNetEncoder().state_dict()
    shapes = {
        "stem.0.weight": (32, 3, 3, 3),
        "stem.3.weight": (32, 32, 3, 3),
        "stem.6.weight": (64, 32, 3, 3),
        "stem.7.running_var": (64,),
        "layer1.0.conv1.weight": (64, 64, 1, 1),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer2.0.conv2.weight": (128, 128, 3, 3),
        "layer3.22.bn3.bias": (1024,),
        "layer4.2.conv3.weight": (2048, 512, 1, 1),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    blocks = 3 + 4 + 23 + 3
    assert len(state) == 3 * 6 + blocks * 18 + 4 * 6
    parameters = sum(v.numel() for k, v in state.items() if k.endswith(("weight", "bias")))
    # 44.549 million of a ResNet-101 with classifier (2.049), whose stem is one 7x7 convolution.
    assert parameters == 44_549_160 - 2_049_000 - 9_408 - 128 + 28_512 + 2 * (32 + 32 + 64)


def test_strides_and_dilations():
    encoder = ResNetEncoder(depths=(1, 1, 2, 2)).eval()
    maps = encoder(torch.rand(1, 3, 64, 96))
    expected = zip(encoder.channels, encoder.strides, strict=True)
    assert [tuple(x.shape[1:]) for x in maps] == [(c, 64 // s, 96 // s) for c, s in expected]
    found = [
        [block.conv2.dilation[0] for block in encoder.get_submodule(f"layer{i}")] for i in (3, 4)
    ]
    assert found == [[1, 2], [2, 4]]


def test_bottleneck_is_the_equation():
    torch.manual_seed(0)
    block = Bottleneck(6, 4, stride=2, dilation=1).eval()
    for buffer in (block.bn1.running_mean, block.bn2.running_var, block.downsample[1].running_mean):
        buffer.uniform_(0.5, 1.5)
    s, x = block.state_dict(), torch.rand(1, 6, 8, 8)

    def norm(y, name):
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(y, *(s[f"{name}.{key}"] for key in keys))

    y = norm(F.conv2d(x, s["conv1.weight"]), "bn1").relu()
    y = norm(F.conv2d(y, s["conv2.weight"], stride=2, padding=1), "bn2").relu()
    y = norm(F.conv2d(y, s["conv3.weight"]), "bn3")
    passed = norm(F.conv2d(x, s["downsample.0.weight"], stride=2), "downsample.1")
    torch.testing.assert_close(block(x), (y + passed).relu())


def test_network_of_deeplabv2_is_at_stride_8():
    config = ModelConfig(encoder="resnet101", head="deeplabv2", num_classes=5, projections=False)
    network = build_network(config).eval()
    assert network.stride == network_stride(config) == 8
    with torch.no_grad():
        assert network(torch.rand(1, 3, 64, 64)).logits.shape == (1, 5, 8, 8)


def test_published_weights_are_loaded_whole_or_refused(tmp_path):
    state = ResNetEncoder().state_dict()
    path = tmp_path / "resnet101_v1c.pth"
    torch.save({"state_dict": {**state, "fc.weight": torch.zeros(2, 2)}}, path)
    loaded = ResNetEncoder(weights=str(path)).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    del state["layer1.0.conv1.weight"]
    torch.save({"state_dict": state}, path)
    with pytest.raises(ValueError, match="do not fit resnet101"):
        ResNetEncoder(weights=str(path))
    with pytest.raises(ValueError, match="model.weights must be a file"):
        ResNetEncoder(weights=str(tmp_path / "nothing.pth"))


def test_recomputed_activations_need_frozen_statistics():
    with pytest.raises(ValueError, match="model.batch_norm must be frozen"):
        ModelConfig(encoder="resnet101", checkpoint_activations=True)
