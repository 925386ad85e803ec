# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with the names and shapes of the published ones, for the tests."""

import math

import torch

from pipa_fast.models.encoders import MIT_SIZES

REDUCTIONS = (8, 4, 2, 1)


def mit_shapes(widths, depths):
    """Names and shapes of a published Mix Transformer (`backbone.*`, the prefix left out)."""
    shapes, before = {}, 3
    for s, (c, depth, r) in enumerate(zip(widths, depths, REDUCTIONS, strict=True), 1):
        size = 7 if s == 1 else 3
        layers = {f"patch_embed{s}.proj": (c, before, size, size), f"patch_embed{s}.norm": (c,)}
        for i in range(depth):
            block = f"block{s}.{i}"
            layers |= {f"{block}.norm1": (c,), f"{block}.norm2": (c,), f"{block}.attn.q": (c, c)}
            layers |= {f"{block}.attn.kv": (2 * c, c), f"{block}.attn.proj": (c, c)}
            if r > 1:
                layers |= {f"{block}.attn.sr": (c, c, r, r), f"{block}.attn.norm": (c,)}
            layers |= {f"{block}.mlp.fc1": (4 * c, c), f"{block}.mlp.fc2": (c, 4 * c)}
            layers[f"{block}.mlp.dwconv.dwconv"] = (4 * c, 1, 3, 3)
        layers[f"norm{s}"] = (c,)
        for name, shape in layers.items():
            shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        before = c
    return shapes


def head_shapes(widths, classes, *, fusion="sepaspp"):
    """Names and shapes of a published DAFormer head, or of HRDA's scale attention ("conv")."""
    shapes = {"conv_seg.weight": (classes, 256, 1, 1), "conv_seg.bias": (classes,)}
    for i, c in enumerate(widths):
        shapes |= {f"embed_layers.{i}.proj.weight": (256, c), f"embed_layers.{i}.proj.bias": (256,)}
    convolutions = {"fuse_layer": (256, 1024, 1, 1)}
    if fusion == "sepaspp":
        aspp = "fuse_layer.aspp_modules"
        convolutions = {f"{aspp}.0": (256, 1024, 1, 1)}
        convolutions["fuse_layer.bottleneck"] = (256, 1024, 3, 3)
        for i in (1, 2, 3):
            convolutions[f"{aspp}.{i}.depthwise_conv"] = (1024, 1, 3, 3)
            convolutions[f"{aspp}.{i}.pointwise_conv"] = (256, 1024, 1, 1)
    for name, shape in convolutions.items():
        shapes[f"{name}.conv.weight"] = shape
        for key in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{key}"] = shape[:1]
        shapes[f"{name}.bn.num_batches_tracked"] = ()
    return shapes


def fill(shapes, prefix=""):
    """Values of a moderate size for each name; variances and scales are positive."""
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[prefix + name] = torch.tensor(7)
        elif name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            state[prefix + name] = 0.5 + torch.rand(shape)
        else:
            fan = math.prod(shape[1:]) if len(shape) > 1 else 25
            state[prefix + name] = torch.randn(shape) / math.sqrt(fan)
    return state


WIDTHS, DEPTHS = MIT_SIZES["mit_b0"]


def daformer_state():
    return fill(mit_shapes(WIDTHS, DEPTHS), "backbone.") | fill(
        head_shapes(WIDTHS, 19), "decode_head."
    )


def write(path, state):
    torch.save({"meta": {"iter": 40000, "CLASSES": ("road",)}, "state_dict": state}, path)
    return path
