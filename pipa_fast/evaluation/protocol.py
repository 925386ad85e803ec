# SPDX-License-Identifier: Apache-2.0
"""How a score was taken: image size, windows, mirroring and precision, as records and in words."""

from collections.abc import Mapping
from typing import Any

import torch

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What autocast is given for a precision; None: no autocast."""


def precision_on(precision: str, device: torch.device) -> str:
    """Return the name in DTYPES of a setting.

    "auto" is bf16 where the device computes in it; else fp16 on a GPU, on which torch would emulate
    bf16, and fp32 on a CPU.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        native = bool(torch.version.hip) or torch.cuda.get_device_capability(device) >= (8, 0)
        return "bf16" if native else "fp16"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the dtype to autocast to; None computes in float32."""
    return DTYPES[precision_on(precision, device)]


def protocol_of(view: Mapping[str, Any], precision: str) -> dict[str, Any]:
    """Return what evaluation_….json tells of how images were seen.

    Args:
        view: keyword arguments of `inference.evaluate`, as `EvaluationConfig.view` has them.
        precision: a name in DTYPES.
    """
    window = view["window"]
    return {
        "image_size": view["image_size"],
        "crop": None if window is None else window.crop,
        "stride": None if window is None else window.stride,
        "flip": view["flip"],
        "precision": precision,
    }


def in_words(protocol: Mapping[str, Any], sizes: str = "") -> str:
    """Return a protocol as one line.

    Args:
        protocol: from `protocol_of`, or a record that was written by an earlier version.
        sizes: says how large the network sees images, in place of the protocol's `image_size`.
    """

    def pair(name: str) -> str:
        return " x ".join(map(str, protocol[name]))

    if not sizes:
        sized = protocol.get("image_size") is not None
        sizes = f"images fitted into {pair('image_size')}" if sized else "images at their own size"
    parts = [sizes]
    if protocol.get("crop") is None:
        parts.append("seen whole")
    else:
        parts.append(f"in windows of {pair('crop')}, {pair('stride')} apart")
    if protocol.get("flip"):
        parts.append("mirrored too")
    precision = protocol.get("precision", "fp32")
    return ", ".join([*parts, "the device's precision" if precision == "auto" else precision])
