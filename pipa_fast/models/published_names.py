# SPDX-License-Identifier: Apache-2.0
"""Names in published files, and what our networks call the same parameters."""

import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipa_fast.checks import first_line

logger = logging.getLogger(__name__)

# Parts of whole classifiers and segmenters that their encoders do not have, or compute.
_OTHER_PARTS = {"classifier", "decode_head", "decoder", "layernorm", "pooler"}
_OTHER_PARTS |= {"mask_token", "relative_position_index"}

# Within a block of a Mix Transformer. Keys and values are one matrix in the files, two here.
_BLOCK_PARTS = {
    "norm1": ("layernorm_before",),
    "norm2": ("layernorm_after",),
    "attn.q": ("attention.q_proj",),
    "attn.kv": ("attention.k_proj", "attention.v_proj"),
    "attn.proj": ("attention.o_proj",),
    "attn.sr": ("attention.sequence_reduction.sequence_reduction",),
    "attn.norm": ("attention.sequence_reduction.layer_norm",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.dwconv.dwconv": ("mlp.dwconv.dwconv",),
    "mlp.fc2": ("mlp.fc2",),
}
_BLOCK = re.compile(r"block([1-4])\.(\d+)\.(.+)\.(weight|bias)")
_PATCH = re.compile(r"patch_embed([1-4])\.(proj|norm)\.(weight|bias)")
_NORM = re.compile(r"norm([1-4])\.(weight|bias)")


def mit_names(key: str) -> tuple[str, ...]:
    """Return what transformers' SegformerModel calls a MiT parameter: two names where keys and
    values are split, none where the name is no MiT encoder's.
    """
    if found := _BLOCK.fullmatch(key):
        stage, block, part, kind = found.groups()
        start = f"stages.{int(stage) - 1}.blocks.{block}"
        return tuple(f"{start}.{name}.{kind}" for name in _BLOCK_PARTS.get(part, ()))
    if found := _PATCH.fullmatch(key):
        part = {"proj": "proj", "norm": "layer_norm"}[found[2]]
        return (f"stages.{int(found[1]) - 1}.patch_embeddings.{part}.{found[3]}",)
    if found := _NORM.fullmatch(key):
        return (f"stages.{int(found[1]) - 1}.layer_norm.{found[2]}",)
    return ()


def head_name(key: str) -> str:
    """Return what our networks call a parameter of `decode_head`, its prefix left out."""
    if key.startswith("scale_attention."):
        return key.replace("scale_attention.", "attention.", 1)
    key = key.removeprefix("head.")  # HRDA's head is in a wrapper
    if key.startswith("aspp_modules."):
        return f"head.conv_seg.{key}"
    key = re.sub(r"^linear_pred\.", "conv_seg.", key)
    key = re.sub(r"^linear_c([1-4])\.", lambda m: f"linear_c.{int(m[1]) - 1}.", key)
    return f"head.{key}"


def segmentor_names(key: str) -> tuple[str, ...]:
    """Return our names of a parameter of a published segmentor (`backbone.*`, `decode_head.*`)."""
    part, _, rest = key.partition(".")
    if part == "backbone":
        return tuple(f"encoder.model.{name}" for name in mit_names(rest)) or (f"encoder.{rest}",)
    return (head_name(rest),) if part == "decode_head" else ()


def hub_name(key: str) -> str:
    """Return our name of a parameter of transformers' SegformerForSemanticSegmentation, "" if none.

    Its head is SegFormer's, under names of its own.
    """
    key = key.replace("segformer.", "encoder.model.", 1)
    for theirs, ours in (
        ("linear_projections.", "linear_c."),
        ("linear_fuse.", "linear_fuse.conv."),
        ("batch_norm.", "linear_fuse.bn."),
        ("classifier.", "conv_seg."),
    ):
        key = key.replace(f"decode_head.{theirs}", f"head.{ours}", 1)
    return key if key.startswith(("encoder.", "head.")) else ""


def rename_mit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of a MiT classifier under transformers' names, its classifier left out."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        if key not in ("head.weight", "head.bias"):
            names = mit_names(key) or (key,)
            renamed.update(zip(names, value.chunk(len(names)), strict=True))
    return renamed


def read_file(path: Path) -> dict[str, Any]:
    """Return what torch.save wrote to `path`, without running code.

    Raises:
        ValueError: it is no such file, or holds more than tensors and plain values.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = first_line(error)
        raise ValueError(
            f"{path} holds more than weights, which could run code when read ({reason}). If you "
            "trust where it is from, write its weights alone to a new file, once: torch.save("
            "{'state_dict': torch.load(FILE, weights_only=False)['state_dict']}, NEW_FILE); or "
            "allow its types by torch.serialization.safe_globals"
        ) from error
    except (OSError, MemoryError):
        raise  # it may be whole
    except Exception as error:  # over bytes that are no pickle, the reader stumbles in many ways
        raise ValueError(f"{path} is damaged, or nothing that torch.save wrote: {error}") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not (isinstance(state, dict) and all(isinstance(key, str) for key in state)):
        raise ValueError(f"{path} must hold a dictionary by name; got {type(state).__name__}")
    if not any(isinstance(value, Tensor) for value in state.values()):
        names = ", ".join(state) or "nothing"
        raise ValueError(f"{path} must hold weights, or a state_dict of them; got {names}")
    return content


def bare_state(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a file's tensors by name, taken out of its `state_dict` and without `module.`."""
    state = content.get("state_dict", content)
    return {
        key.removeprefix("module."): value
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def check_complete(name: str, weights: str, report: Mapping[str, Any]) -> None:
    """Raise ValueError unless what transformers loaded is all of the encoder, and all of the file.

    A file of a deeper network would fit otherwise, its last blocks left out.
    """
    unexpected = set(report["unexpected_keys"])
    left_out = {key for key in unexpected if _OTHER_PARTS & set(key.split("."))}
    # The norms of a backbone's maps are its own, and start as identities.
    missing = [k for k in report["missing_keys"] if not k.startswith("hidden_states_norms.")]
    problems = {
        "missing": sorted(missing),
        "unexpected": sorted(unexpected - left_out),
        "of another shape": sorted(str(key) for key in report["mismatched_keys"]),
    }
    if any(problems.values()):
        text = "; ".join(f"{len(v)} {k}, such as {v[0]}" for k, v in problems.items() if v)
        raise ValueError(f"model.weights {weights!r} do not fit {name}: {text}")
    if left_out:
        logger.info("%s: left out what is not the encoder's: %s", weights, sorted(left_out))
