# SPDX-License-Identifier: Apache-2.0
import torch
import torch.nn.functional as F

from pipa_fast.models.config import ModelConfig
from pipa_fast.models.encoders import MIT_SIZES
from pipa_fast.models.heads import DAFormerHead, DeepLabV2Head, LightHead, SegFormerHead, build_head


def bn(prefix):
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return {f"{prefix}.bn.{name}" for name in ("weight", "bias", *statistics)}


def test_keys_of_the_daformer_head_are_those_of_the_published_checkpoints():
    """`decode_head.*` of DAFormer's, HRDA's and PiPa's files, without the prefix."""
    expected = {"conv_seg.weight", "conv_seg.bias"}
    for i in range(4):
        expected |= {f"embed_layers.{i}.proj.weight", f"embed_layers.{i}.proj.bias"}
    convolutions = ["aspp_modules.0", "bottleneck"]
    for i in (1, 2, 3):
        convolutions += [f"aspp_modules.{i}.{kind}_conv" for kind in ("depthwise", "pointwise")]
    for name in convolutions:
        expected |= {f"fuse_layer.{name}.conv.weight"} | bn(f"fuse_layer.{name}")
    state = DAFormerHead(MIT_SIZES["mit_b5"].hidden_sizes, 19, 0.1).state_dict()
    assert state.keys() == expected
    shapes = {
        "embed_layers.3.proj.weight": (256, 512),
        "fuse_layer.aspp_modules.0.conv.weight": (256, 1024, 1, 1),
        "fuse_layer.aspp_modules.2.depthwise_conv.conv.weight": (1024, 1, 3, 3),
        "fuse_layer.aspp_modules.2.pointwise_conv.conv.weight": (256, 1024, 1, 1),
        "fuse_layer.bottleneck.conv.weight": (256, 1024, 3, 3),
        "conv_seg.weight": (19, 256, 1, 1),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_daformer_head_is_the_equation():
    """The same from plain functions, in evaluation mode."""
    torch.manual_seed(0)
    widths, head = (4, 6), DAFormerHead((4, 6), 3, 0.1).eval()
    maps = [torch.rand(1, 4, 8, 8), torch.rand(1, 6, 4, 4)]
    s = head.state_dict()

    def block(x, name, **options):
        x = F.conv2d(x, s[f"{name}.conv.weight"], **options)
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(s[f"{name}.bn.{key}"] for key in keys)).relu()

    embedded = []
    for i in range(len(widths)):
        tokens = maps[i].flatten(2).transpose(1, 2) @ s[f"embed_layers.{i}.proj.weight"].T
        tokens = tokens + s[f"embed_layers.{i}.proj.bias"]
        grid = tokens.transpose(1, 2).unflatten(2, maps[i].shape[2:])
        embedded.append(F.interpolate(grid, (8, 8), mode="bilinear", align_corners=False))
    x = torch.cat(embedded, 1)
    branches = [block(x, "fuse_layer.aspp_modules.0")]
    for i, dilation in ((1, 6), (2, 12), (3, 18)):
        name = f"fuse_layer.aspp_modules.{i}"
        y = block(x, f"{name}.depthwise_conv", padding=dilation, dilation=dilation, groups=512)
        branches.append(block(y, f"{name}.pointwise_conv"))
    fused = block(torch.cat(branches, 1), "fuse_layer.bottleneck", padding=1)
    torch.testing.assert_close(head(maps), fused)
    logits = F.conv2d(fused, s["conv_seg.weight"], s["conv_seg.bias"])
    torch.testing.assert_close(head.classify(fused), logits)


def test_dropout_takes_whole_channels_before_the_classifier_alone():
    head = DAFormerHead((4,), 3, 0.5).train()
    fused = torch.ones(1, 256, 2, 2)
    with torch.no_grad():
        head.conv_seg.weight.fill_(1.0)
    logits = head.classify(fused)
    assert logits.std() == 0 and not torch.equal(logits, head.eval().classify(fused))


def test_coarse_maps_reach_the_light_heads_logits():
    head = LightHead((4, 6, 8), 3)
    maps = [
        torch.rand(1, c, 16 // s, 16 // s, requires_grad=True)
        for c, s in zip((4, 6, 8), (1, 2, 4), strict=True)
    ]
    logits = head.classify(head(maps))
    assert logits.shape == (1, 3, 16, 16)
    gradients = torch.autograd.grad(logits[0, 0, 0, 0], maps)
    assert all(g.abs().sum() > 0 for g in gradients)


def test_keys_of_the_scale_attention_are_those_of_the_published_checkpoints():
    """`decode_head.scale_attention.*` of HRDA's files, without the prefix."""
    head = DAFormerHead(MIT_SIZES["mit_b5"].hidden_sizes, 19, 0.0, fusion="conv")
    expected = {"conv_seg.weight", "conv_seg.bias", "fuse_layer.conv.weight", *bn("fuse_layer")}
    for i in range(4):
        expected |= {f"embed_layers.{i}.proj.weight", f"embed_layers.{i}.proj.bias"}
    assert head.state_dict().keys() == expected
    assert head.fuse_layer.conv.weight.shape == (256, 1024, 1, 1)


def test_segformer_head_is_the_equation():
    """Enlarged linear maps, deepest first, through one linear map, batch norm and ReLU."""
    torch.manual_seed(0)
    head = SegFormerHead((4, 6), 3, 0.1, channels=8).eval()
    head.linear_fuse.bn.running_mean.uniform_(-1, 1)
    maps = [torch.rand(1, 4, 8, 8), torch.rand(1, 6, 4, 4)]
    s = head.state_dict()
    embedded = [
        torch.einsum("bchw,dc->bdhw", x, s[f"linear_c.{i}.proj.weight"])
        + s[f"linear_c.{i}.proj.bias"].view(-1, 1, 1)
        for i, x in enumerate(maps)
    ]
    deep = F.interpolate(embedded[1], (8, 8), mode="bilinear", align_corners=False)
    x = torch.cat([deep, embedded[0]], 1)
    x = torch.einsum("bchw,dc->bdhw", x, s["linear_fuse.conv.weight"][..., 0, 0])
    keys = ("running_mean", "running_var", "weight", "bias")
    fused = F.batch_norm(x, *(s[f"linear_fuse.bn.{key}"] for key in keys)).relu()
    torch.testing.assert_close(head(maps), fused)
    logits = torch.einsum("bchw,dc->bdhw", fused, s["conv_seg.weight"][..., 0, 0])
    torch.testing.assert_close(head.classify(fused), logits + s["conv_seg.bias"].view(-1, 1, 1))


def test_width_of_the_segformer_head_is_the_published_one_or_the_settings():
    for encoder, width in (("mit_b0", 256), ("mit_b1", 256), ("mit_b2", 768), ("mit_b5", 768)):
        config = ModelConfig(encoder=encoder, head="segformer")
        assert build_head(config, (4, 6)).channels == width
    config = ModelConfig(encoder="mit_b5", head="segformer", head_channels=32)
    assert build_head(config, (4, 6)).linear_fuse.conv.weight.shape == (32, 64, 1, 1)


def test_deeplabv2_head_sums_dilated_convolutions_of_the_last_map():
    torch.manual_seed(0)
    head = DeepLabV2Head((4, 6), 3)
    maps = [torch.rand(1, 4, 8, 8), torch.rand(1, 6, 30, 30)]
    assert head.channels == 6 and head(maps) is maps[-1]
    s = head.state_dict()
    total = torch.zeros(1, 3, 30, 30)
    for i, dilation in enumerate((6, 12, 18, 24)):
        name = f"conv_seg.aspp_modules.{i}.conv"
        torch.nn.init.normal_(s[f"{name}.bias"])
        total += F.conv2d(
            maps[-1], s[f"{name}.weight"], s[f"{name}.bias"], padding=dilation, dilation=dilation
        )
    torch.testing.assert_close(head.classify(maps[-1]), total)
    assert len(s) == 8
