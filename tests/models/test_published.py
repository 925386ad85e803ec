# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipa_fast.models import ModelConfig, build_network
from pipa_fast.models.encoders import MIT_SIZES, MitEncoder
from pipa_fast.models.heads import DAFormerHead
from pipa_fast.models.published import load_published
from pipa_fast.models.published_names import mit_names
from tests.models.published import (
    DEPTHS,
    REDUCTIONS,
    WIDTHS,
    daformer_state,
    fill,
    head_shapes,
    mit_shapes,
    write,
)

HEADS = (1, 2, 5, 8)


def daformer():
    return build_network(ModelConfig(encoder="mit_b0", head="daformer"))


def test_all_keys_of_b5_have_a_name_of_ours_and_the_shape():
    shapes = mit_shapes(*MIT_SIZES["mit_b5"])
    assert len(shapes) == 1052
    with torch.device("meta"):
        expected = {k: tuple(v.shape) for k, v in MitEncoder("mit_b5").model.state_dict().items()}
    found = {}
    for key, shape in shapes.items():
        names = mit_names(key)
        found |= {name: (shape[0] // len(names), *shape[1:]) for name in names}
    assert found == expected


def oracle(state, images):
    """Logits of a Mix Transformer and DAFormer's head from the equations, in float64."""
    s = {k: v.double() for k, v in state.items()}

    def linear(x, name):
        return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]

    def norm(x, name, eps):
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
        return centred * scale * s[f"{name}.weight"] + s[f"{name}.bias"]

    def conv(x, name, **options):
        return F.conv2d(x, s[f"{name}.weight"], s.get(f"{name}.bias"), **options)

    def tokens(x):
        return x.flatten(2).transpose(1, 2)

    def attend(x, name, grid, heads, reduction):
        keys = x
        if reduction > 1:
            image = x.transpose(1, 2).unflatten(2, grid)
            keys = norm(tokens(conv(image, f"{name}.sr", stride=reduction)), f"{name}.norm", 1e-5)
        k, v = linear(keys, f"{name}.kv").chunk(2, -1)
        parts = [
            t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (linear(x, f"{name}.q"), k, v)
        ]
        scores = parts[0] @ parts[1].transpose(2, 3) / math.sqrt(parts[0].shape[-1])
        exponents = (scores - scores.amax(-1, keepdim=True)).exp()
        y = exponents / exponents.sum(-1, keepdim=True) @ parts[2]
        return linear(y.transpose(1, 2).flatten(2), f"{name}.proj")

    def mix(x, name, grid):
        hidden = linear(x, f"{name}.fc1").transpose(1, 2).unflatten(2, grid)
        hidden = conv(hidden, f"{name}.dwconv.dwconv", padding=1, groups=hidden.shape[1])
        gaussian = 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        return linear(tokens(hidden * gaussian), f"{name}.fc2")

    maps, x = [], images.double()
    for i, (depth, heads, reduction) in enumerate(zip(DEPTHS, HEADS, REDUCTIONS, strict=True), 1):
        size, stride = (7, 4) if i == 1 else (3, 2)
        name = f"backbone.patch_embed{i}"
        x = conv(x, f"{name}.proj", stride=stride, padding=size // 2)
        grid, x = x.shape[2:], norm(tokens(x), f"{name}.norm", 1e-5)
        for j in range(depth):
            name = f"backbone.block{i}.{j}"
            y = norm(x, f"{name}.norm1", 1e-6)
            x = x + attend(y, f"{name}.attn", grid, heads, reduction)
            x = x + mix(norm(x, f"{name}.norm2", 1e-6), f"{name}.mlp", grid)
        x = norm(x, f"backbone.norm{i}", 1e-6).transpose(1, 2).unflatten(2, grid)
        maps.append(x)
    return decode(s, maps, linear, conv)


def decode(s, maps, linear, conv):
    """Logits of DAFormer's head for float64 maps."""

    def block(x, name, **options):
        x = conv(x, f"{name}.conv", **options)
        v = {k: s[f"{name}.bn.{k}"].view(-1, 1, 1) for k in ("weight", "bias")}
        mean, var = (s[f"{name}.bn.running_{k}"].view(-1, 1, 1) for k in ("mean", "var"))
        return ((x - mean) / (var + 1e-5).sqrt() * v["weight"] + v["bias"]).relu()

    size, embedded = maps[0].shape[2:], []
    for i, x in enumerate(maps):
        y = linear(x.permute(0, 2, 3, 1), f"decode_head.embed_layers.{i}.proj").permute(0, 3, 1, 2)
        embedded.append(F.interpolate(y, size, mode="bilinear", align_corners=False))
    x, aspp = torch.cat(embedded, 1), "decode_head.fuse_layer.aspp_modules"
    branches = [block(x, f"{aspp}.0")]
    for i, d in ((1, 6), (2, 12), (3, 18)):
        y = block(x, f"{aspp}.{i}.depthwise_conv", padding=d, dilation=d, groups=1024)
        branches.append(block(y, f"{aspp}.{i}.pointwise_conv"))
    fused = block(torch.cat(branches, 1), "decode_head.fuse_layer.bottleneck", padding=1)
    return conv(fused, "decode_head.conv_seg")


def test_logits_are_those_of_the_equations(tmp_path):
    state = daformer_state()
    training = {
        "model.cls_head.0.weight": torch.zeros(2),
        "model.proj_head.proj.0.bias": torch.zeros(2),
        "ema_model.backbone.norm1.weight": torch.zeros(32),
        "imnet_model.backbone.norm1.weight": torch.zeros(32),
        "project.0.weight": torch.zeros(2),
        "classifier.bias": torch.zeros(2),
    }
    file = {f"module.model.{k}": v for k, v in state.items()} | training
    network = daformer().eval()
    report = load_published(write(tmp_path / "a.pth", file), network)
    assert report.complete and set(report.ignored) == training.keys()
    images = torch.rand(2, 3, 64, 96)
    expected = oracle(state, (images - network.mean) / network.std)
    ours = network.double()(images.double()).logits
    assert expected.std() > 1e-3
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6 * float(expected.std()))


def test_branches_and_plain_segmentors(tmp_path):
    student, teacher = daformer_state(), daformer_state()
    file = {f"model.{k}": v for k, v in student.items()}
    file |= {f"ema_model.{k}": v for k, v in teacher.items()}
    both, bare = write(tmp_path / "both.pth", file), write(tmp_path / "bare.pth", student)
    for path, branch, state in (
        (both, "student", student),
        (both, "teacher", teacher),
        (bare, "student", student),
    ):
        network = daformer()
        load_published(path, network, branch=branch)
        weight = network.get_parameter("encoder.model.stages.0.blocks.1.attention.v_proj.weight")
        key = "backbone.block1.1.attn.kv.weight"
        assert torch.equal(weight, state[key][32:])
        assert torch.equal(network.head.conv_seg.weight, state["decode_head.conv_seg.weight"])
    with pytest.raises(ValueError, match="branch must be one that bare.pth holds"):
        load_published(bare, daformer(), branch="teacher")
    with pytest.raises(ValueError, match="branch must be student or teacher"):
        load_published(bare, daformer(), branch="pupil")


def test_hrdas_head_and_scale_attention(tmp_path):
    state = {f"model.{k}": v for k, v in fill(mit_shapes(WIDTHS, DEPTHS), "backbone.").items()}
    state |= fill(head_shapes(WIDTHS, 19), "model.decode_head.head.")
    attention = "model.decode_head.scale_attention."
    state |= fill(head_shapes(WIDTHS, 19, fusion="conv"), attention)
    network = daformer()
    network.add_module("attention", DAFormerHead(WIDTHS, 19, 0.0, fusion="conv"))
    report = load_published(write(tmp_path / "hrda.pth", state), network)
    assert report.complete and not report.ignored
    for key, value in network.attention.state_dict().items():
        assert torch.equal(value, state[attention + key]), key
    for key, value in network.head.state_dict().items():
        assert torch.equal(value, state[f"model.decode_head.head.{key}"]), key


@pytest.mark.parametrize("numbered", ["linear_c{}", "linear_c.{}"])
def test_segformers_head_without_the_classifier_it_never_calls(tmp_path, numbered):
    shapes = {"linear_pred.weight": (19, 256, 1, 1), "linear_pred.bias": (19,)}
    shapes |= {"conv_seg.weight": (19, 128, 1, 1), "conv_seg.bias": (19,)}
    shapes["linear_fuse.conv.weight"] = (256, 1024, 1, 1)
    for key in ("weight", "bias", "running_mean", "running_var"):
        shapes[f"linear_fuse.bn.{key}"] = (256,)
    for i, c in enumerate(WIDTHS):
        name = numbered.format(i + ("." not in numbered))
        shapes |= {f"{name}.proj.weight": (256, c), f"{name}.proj.bias": (256,)}
    state = fill(mit_shapes(WIDTHS, DEPTHS), "backbone.") | fill(shapes, "decode_head.")
    network = build_network(ModelConfig(encoder="mit_b0", head="segformer"))
    report = load_published(write(tmp_path / "segformer.pth", state), network)
    assert report.ignored == ("decode_head.conv_seg.weight", "decode_head.conv_seg.bias")
    assert torch.equal(network.head.conv_seg.weight, state["decode_head.linear_pred.weight"])
    first = state[f"decode_head.{numbered.format(int('.' not in numbered))}.proj.weight"]
    assert torch.equal(network.head.linear_c[0].proj.weight, first)
    # SegFormer joins its maps deepest first; DAFormer's copy, with `linear_c.0`, finest first
    head, weight = network.head.eval(), state["decode_head.linear_fuse.conv.weight"]
    maps = [torch.rand(1, c, 8, 8) for c in WIDTHS]
    joined = [embed(x) for embed, x in zip(head.linear_c, maps, strict=True)]
    fused = F.conv2d(torch.cat(joined if "." in numbered else joined[::-1], 1), weight)
    torch.testing.assert_close(head(maps), head.linear_fuse.bn(fused).relu())


@pytest.mark.parametrize("dilations", [None, (6, 12)])
def test_deeplabv2_on_a_resnet(tmp_path, dilations):
    settings = {"encoder": "resnet101", "head": "deeplabv2", "projections": False}
    network = build_network(ModelConfig(**settings, dilations=dilations))
    state = {f"backbone.{k}": v for k, v in network.encoder.state_dict().items()}
    count = 4 if dilations is None else 2  # DAFormer's dlv2red
    for i in range(count):
        state[f"decode_head.aspp_modules.{i}.conv.weight"] = torch.rand(19, 2048, 3, 3)
        state[f"decode_head.aspp_modules.{i}.conv.bias"] = torch.rand(19)
    assert load_published(write(tmp_path / "dl.pth", state), network).complete
    expected = state[f"decode_head.aspp_modules.{count - 1}.conv.bias"]
    last = network.head.conv_seg.aspp_modules[count - 1]
    assert torch.equal(last.conv.bias, expected)
    assert last.conv.dilation == (24, 24) if dilations is None else (12, 12)


def test_a_partial_load_is_refused_unless_allowed(tmp_path):
    state = {f"model.{k}": v for k, v in daformer_state().items()}
    del state["model.backbone.norm2.weight"]
    state["model.decode_head.conv_seg.bias"] = torch.zeros(16)
    state |= {"model.backbone.block9.0.norm1.weight": torch.zeros(2), "stranger": torch.zeros(2)}
    network = daformer()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    path = write(tmp_path / "a.pth", state)
    with pytest.raises(ValueError, match="2 unmatched: stranger, .*1 missing: .*1 mismatched"):
        load_published(path, network)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    report = load_published(path, network, allow_partial=True)
    assert report.missing == ("encoder.model.stages.1.layer_norm.weight",)
    assert set(report.unmatched) == {"stranger", "model.backbone.block9.0.norm1.weight"}
    assert report.mismatched == ("head.conv_seg.bias ((16,) in the file, (19,) here)",)
    loaded = network.state_dict()["head.conv_seg.weight"]
    assert torch.equal(loaded, state["model.decode_head.conv_seg.weight"])


class Surprise(nn.Module):
    """What a reader of weights must not build."""


def test_a_file_is_not_called_damaged_where_memory_ends(tmp_path, monkeypatch):
    def run_out(*_, **__):
        raise MemoryError

    monkeypatch.setattr("torch.load", run_out)
    (tmp_path / "a.pth").write_bytes(b"weights")
    with pytest.raises(MemoryError):
        load_published(tmp_path / "a.pth", daformer())


def test_files_that_are_no_plain_weights_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"state_dict": {}, "meta": Surprise()}, path)
    with pytest.raises(ValueError, match="weights_only=False"):
        load_published(path, daformer())
    for junk in (b"nothing", b"alias make=gmake\n", b"\x80\x02X\xff\xfe"):
        path.write_bytes(junk)
        with pytest.raises(ValueError, match="a.pth (is damaged|holds more)"):
            load_published(path, daformer())
    for content in ([1], {"state_dict": [1]}, {1: torch.zeros(2)}):
        torch.save(content, path)
        with pytest.raises(ValueError, match="a.pth must hold a dictionary by name; got"):
            load_published(path, daformer())
    torch.save({"model": {"encoder.weight": torch.zeros(2)}}, path)
    with pytest.raises(ValueError, match="a.pth must hold weights, or a state_dict.*; got model"):
        load_published(path, daformer())
    with pytest.raises(ValueError, match="path must be a published"):
        load_published(tmp_path / "nothing.pth", daformer())


def test_imagenet_weights_of_nvlabs_make_an_encoder(tmp_path):
    state = fill(mit_shapes(WIDTHS, DEPTHS))
    file = state | {"head.weight": torch.rand(1000, 256), "head.bias": torch.rand(1000)}
    path = tmp_path / "mit_b0.pth"
    torch.save(file, path)
    encoder = MitEncoder("mit_b0", weights=str(path))
    assert encoder.training
    query = encoder.model.get_parameter("stages.2.blocks.0.attention.q_proj.weight")
    assert torch.equal(query, state["block3.0.attn.q.weight"])
    with pytest.raises(ValueError, match="do not fit mit_b1"):
        MitEncoder("mit_b1", weights=str(path))
    with pytest.raises(ValueError, match=r"model.weights must be a file that is there; .*b5\.pth"):
        MitEncoder("mit_b5", weights="nowhere/mit_b5.pth")


def test_a_segformer_that_transformers_saved_gives_its_own_logits(tmp_path):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    sizes = {"hidden_sizes": WIDTHS, "depths": DEPTHS, "decoder_hidden_size": 256}
    stored = SegformerForSemanticSegmentation(SegformerConfig(num_labels=19, **sizes)).eval()
    stored.decode_head.batch_norm.running_mean.normal_()
    stored.save_pretrained(tmp_path / "hub")
    network = build_network(ModelConfig(encoder="mit_b0", head="segformer", projections=False))
    report = load_published(tmp_path / "hub", network)
    assert report.complete and report.loaded == len(network.state_dict())
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = stored((images - network.mean) / network.std).logits
        logits = network.eval()(images).logits
    # it has 1e-6 in every norm, where the original and ours have 1e-5 in some
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="branch must be student"):
        load_published(tmp_path / "hub", network, branch="teacher")
    with pytest.raises(ValueError, match="does not fit the network: .* mismatched"):
        load_published(
            tmp_path / "hub", build_network(ModelConfig(encoder="mit_b1", head="segformer"))
        )
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no folder of a SegFormer"):
        load_published(tmp_path / "empty", network)
