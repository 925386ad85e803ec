# SPDX-License-Identifier: Apache-2.0
"""The operators of csrc/cuda/bindings.cpp by kernels that run on a CPU, see cuda_emulator.h."""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from tests.compiled import library

ROOT = Path(__file__).resolve().parents[2]
PARTS, PADDING = 8, 128  # kParts and kPadding of csrc/cuda/limits.h


def build(folder: Path) -> Path:
    """Return the library, compiled once for what the sources say."""
    sources = sorted([*(ROOT / "csrc/cuda").iterdir(), *(ROOT / "tests/csrc").glob("cuda_*")])
    content = b"".join(path.read_bytes() for path in sources if path.is_file())
    flags = ["-std=c++17", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-Wno-psabi"]
    flags += [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests/csrc'}"]
    return library(folder, ROOT / "tests/csrc/cuda_driver.cpp", content, flags)


class PixelContrast(ctypes.Structure):
    """The struct of csrc/cuda/pixel_contrast.h."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("row_bytes", ctypes.c_int),
        ("number", ctypes.c_int),
        ("first", ctypes.c_void_p),
        ("past", ctypes.c_void_p),
        ("live", ctypes.c_void_p),
        ("keys", ctypes.c_void_p),
        ("m", ctypes.c_int64),
        ("live_keys", ctypes.c_void_p),
        ("itself", ctypes.c_bool),
        ("all_form", ctypes.c_bool),
        ("scale", ctypes.c_float),
        ("padded", ctypes.c_int64),
    )


class PatchConsistency(ctypes.Structure):
    """The struct of csrc/cuda/patch_consistency.h."""

    _fields_ = (
        ("a", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("keys", ctypes.c_void_p),
        ("m", ctypes.c_int64),
        ("row_bytes", ctypes.c_int),
        ("number", ctypes.c_int),
        ("first", ctypes.c_void_p),
        ("past", ctypes.c_void_p),
        ("live", ctypes.c_void_p),
        ("live_keys", ctypes.c_void_p),
        ("scale", ctypes.c_float),
        ("shift", ctypes.c_float),
    )


class Emulated:
    """Stands in for torch.ops.pipa_fast_cuda. Memory that a kernel must write begins as NaN."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        for name in ("denominators", "positives", "cosines", "gradient"):
            getattr(self.library, f"pixel_contrast_{name}").restype = ctypes.c_char_p
        self.library.patch_consistency_sums.restype = ctypes.c_char_p

    def of(self, chip: str) -> "Emulated":
        """Return these kernels, as a chip would choose them: Hopper has its own for 16 bits."""
        self.library.set_hopper(chip == "sm_90a")
        self.chip = chip
        return self

    def _call(self, name: str, problem: ctypes.Structure, *arguments: object) -> None:
        given = [_pointer(a) if isinstance(a, Tensor) else a for a in arguments]
        wrong = getattr(self.library, name)(ctypes.byref(problem), *given)
        assert wrong is None, wrong

    def pixel_contrast_denominators(self, *problem):
        made, width, count = _pixel_contrast(*problem), ctypes.c_int(), ctypes.c_int()
        sizes = ctypes.byref(width), ctypes.byref(count)
        self.library.pixel_contrast_slots(ctypes.byref(made), *sizes)
        sums = torch.zeros(count.value, made.padded)
        self._call("pixel_contrast_denominators", made, width, count, sums)
        return sums

    def pixel_contrast_positives(self, *arguments):
        *problem, z = arguments
        made = _pixel_contrast(*problem)
        parts = torch.zeros(PARTS, 2, made.padded)
        self._call("pixel_contrast_positives", made, z, parts)
        return parts

    def pixel_contrast_cosines(self, *problem):
        made = _pixel_contrast(*problem)
        tile_sums = torch.full((-(-made.m // PADDING), problem[0].shape[1]), torch.nan)
        sums = torch.zeros(made.padded)
        self._call("pixel_contrast_cosines", made, tile_sums, sums)
        return sums

    def pixel_contrast_gradient(self, *arguments):
        *problem, slopes, of_keys, order, factor, wide = arguments
        dtype = torch.float32 if wide else problem[0].dtype
        gradient = torch.full_like(problem[0], torch.nan, dtype=dtype)
        known = slopes, slopes if of_keys is None else of_keys
        made = _pixel_contrast(*problem)
        self._call("pixel_contrast_gradient", made, *known, order, factor, wide, gradient)
        return gradient

    def patch_consistency_sums(
        self, a, keys, first, past, live, live_keys, scale, shift, number, splits
    ):
        made = PatchConsistency(
            a.data_ptr(),
            len(a),
            keys.data_ptr(),
            len(keys),
            a.shape[1] * a.element_size(),
            number,
            first.data_ptr(),
            past.data_ptr(),
            live.data_ptr(),
            live_keys.data_ptr(),
            scale,
            shift,
        )
        z, o = torch.full((splits, len(a)), torch.nan), torch.full((splits, *a.shape), torch.nan)
        self._call("patch_consistency_sums", made, splits, z, o)
        return z, o


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())


def _pixel_contrast(x, first, past, live, keys, live_keys, all_form, scale, number):
    others = x if keys is None else keys
    return PixelContrast(
        x.data_ptr(),
        len(x),
        x.shape[1] * x.element_size(),
        number,
        first.data_ptr(),
        past.data_ptr(),
        live.data_ptr(),
        others.data_ptr(),
        len(others),
        (live if keys is None else live_keys).data_ptr(),
        keys is None,
        all_form,
        scale,
        len(first),
    )
