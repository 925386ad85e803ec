# SPDX-License-Identifier: Apache-2.0
"""Builds the native extensions; everything else of the package is in pyproject.toml.

    python setup.py build_ext --inplace                  # rebuild what changed; errors are errors
    pip install --no-build-isolation -e .                # with the torch that is installed
    PIPA_FAST_CUDA=1 pip install --no-build-isolation .  # refuses to build without CUDA kernels
    PIPA_FAST_CUDA_ARCHS="80 86 90a" …                   # for which GPUs; 80 and 90a by default

The CUDA kernels are built where nvcc is found and torch has CUDA, or on request beside any torch:
they carry their own CUDA runtime, and load where there is no driver. The newest architecture comes
as PTX too, for GPUs that are newer still. PIPA_FAST_CUDA=0 leaves them out.

CFLAGS, CXXFLAGS and LDFLAGS add to the flags, as anywhere; `make sanitize` passes its own by them.
Without isolation the build's own tools must be there: pip install "setuptools>=80.9" ninja pybind11

Where the extensions cannot be built, `pip install` says why and installs the package without them:
it then runs on the "reference" backend. `python -m pipa_fast.info` shows what is there.
"""

import os
import re
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CUDA = os.environ.get("PIPA_FAST_CUDA", "")
if CUDA not in ("", "0", "1"):
    raise ValueError(f"PIPA_FAST_CUDA must be 0 or 1, got {CUDA!r}")
HOPPER = "90a"  # whose wgmma and TMA have units of their own
ARCHS = os.environ.get("PIPA_FAST_CUDA_ARCHS", "80 90a").split()
if not ARCHS or not all(re.fullmatch(r"\d{2,3}a?", arch) for arch in ARCHS):
    raise ValueError(f'PIPA_FAST_CUDA_ARCHS must be as in "80 90a", got {" ".join(ARCHS)!r}')
NVCC = shutil.which("nvcc")
if CUDA == "1" and NVCC is None:
    # Asked for by name, so a build for the CPU alone would be a silent surprise.
    raise RuntimeError(
        "PIPA_FAST_CUDA=1 asks for CUDA C++ kernels, which need nvcc on the PATH: install the CUDA "
        "toolkit, or unset it: on a GPU the Triton kernels run, which need no build"
    )

try:
    import pybind11
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as error:
    MISSING: ImportError | None = error
    Builder: type[build_ext] = build_ext
else:
    MISSING = None
    Builder = BuildExtension

# torch 2.11 is the oldest that pyproject.toml allows. The stable ABI keeps what is built with any
# torch from there on loadable by all the others.
TORCH_ABI = ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DTORCH_STABLE_ONLY"]
# A sanitizer's build keeps symbols, for its traces, and the optimisation that it asks for.
SANITIZED = "-fsanitize=" in os.environ.get("CXXFLAGS", "")
COMPILE = [*([] if SANITIZED else ["-O3", "-g0"]), "-fvisibility=hidden", "-Wall"]
LINK = [] if SANITIZED or sys.platform == "darwin" else ["-Wl,-s"]


class CudaExtension(Extension):
    """An extension whose kernels nvcc compiles, one object for each .cu file."""


def toolkit() -> Path:
    """Return the folder that nvcc belongs to, whatever wraps it."""
    said = subprocess.run([str(NVCC), "--dryrun", "x.cu"], capture_output=True, text=True).stderr
    found = re.search(r"TOP=(\S+)", said)
    return Path(found.group(1)).resolve() if found else Path(str(NVCC)).resolve().parent.parent


def cuda_extension(headers: list[str], include: list[str]) -> list[Extension]:
    """The operators of csrc/cuda, if they are to be built."""
    wanted = CUDA == "1" or (CUDA == "" and NVCC is not None and torch.version.cuda is not None)
    if not wanted:
        return []
    places = ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib")
    folders = [str(f.parent) for p in places for f in (toolkit() / p).glob("libcudart_static.a")]
    extension = CudaExtension(
        "pipa_fast._CUDA",
        ["csrc/cuda/bindings.cpp"],
        include_dirs=[*include, *torch.utils.cpp_extension.include_paths()],
        libraries=["cudart_static", "dl", "rt", "pthread", "c10", "torch", "torch_cpu"],
        library_dirs=[*folders, *torch.utils.cpp_extension.library_paths()],
        depends=[*headers, *cuda_sources()],
        language="c++",
        define_macros=[
            ("PIPA_FAST_CUDA_ARCHS", f'"{" ".join(ARCHS)}"'),
            ("PIPA_FAST_CUDA_PTX", f'"{ptx()}"'),
        ],
        extra_compile_args=[*COMPILE, "-std=c++17", *TORCH_ABI],
        extra_link_args=LINK,
    )
    return [extension]


def ptx(archs: list[str] = ARCHS) -> str:
    """Return the architecture that comes as PTX too, for what comes later; "" for none."""
    plain = [arch for arch in archs if not arch.endswith("a")]  # the others' has no use elsewhere
    return max(plain, key=int, default="")


def cuda_sources() -> list[str]:
    """Return the units to compile: those for Hopper only where sm_90a is asked for."""
    found = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/cuda/*.cu"))
    return [source for source in found if HOPPER in ARCHS or not for_hopper(source)]


def for_hopper(source: str) -> bool:
    return "_hopper_" in Path(source).name


def code_flags(source: str) -> list[str]:
    """Return for which chips nvcc compiles a unit."""
    archs = [HOPPER] if for_hopper(source) else ARCHS
    codes = [f"arch=compute_{arch},code=sm_{arch}" for arch in archs]
    if newest := ptx(archs):
        codes.append(f"arch=compute_{newest},code=compute_{newest}")
    return [word for code in codes for word in ("-gencode", code)]


def compile_cuda(folder: Path, headers: list[str]) -> list[str]:
    """Compile what is older than its source or any header, or made in another way.

    Return the objects.
    """
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["-std=c++17", "-O3", "-Icsrc", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
    flags += ["-DPIPA_FAST_HOPPER"] if HOPPER in ARCHS else []
    version = subprocess.run([str(NVCC), "--version"], capture_output=True, text=True).stdout
    stamp, content = folder / "flags", repr((NVCC, version, flags, ARCHS))
    same = stamp.exists() and stamp.read_text() == content
    if not same:  # a build that stops half-way leaves objects of both, which are no later one's
        stamp.unlink(missing_ok=True)
    shared = max(Path(h).stat().st_mtime for h in headers)

    def compile_one(source: str) -> str:
        made = folder / (Path(source).stem + ".o")
        needed = max(shared, Path(source).stat().st_mtime)
        if not (same and made.exists() and made.stat().st_mtime > needed):
            words = [str(NVCC), *flags, *code_flags(source), "-c", source, "-o", str(made)]
            subprocess.run(words, check=True)
        return str(made)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, cuda_sources()))
    stamp.write_text(content)
    return objects


def extensions() -> list[Extension]:
    """The stable-ABI operators, for CPUs and GPUs, and the pybind11 module of host logic."""
    if MISSING is not None:
        return []
    headers = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/**/*.h"))
    kernels = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/cpu/*.cpp"))
    host = ["csrc/cpu/isa.cpp", "csrc/cpu/rows.cpp", "csrc/cpu/schedule.cpp"]
    include = [str(ROOT / "csrc")]
    return [
        CppExtension(
            "pipa_fast._C",
            ["csrc/bindings.cpp", *kernels],
            include_dirs=include,
            depends=headers,
            py_limited_api=True,
            extra_compile_args=[*COMPILE, *TORCH_ABI],
            extra_link_args=LINK,
        ),
        Extension(
            "pipa_fast._host",
            ["csrc/host.cpp", *host],
            include_dirs=[*include, pybind11.get_include()],
            depends=headers,
            language="c++",
            extra_compile_args=COMPILE,
            extra_link_args=LINK,
        ),
        *cuda_extension(headers, include),
    ]


class BuildNative(Builder):
    """Builds the extensions, or, where `pip install` cannot, says why and goes on without."""

    def run(self) -> None:
        version = self.distribution.get_version()
        for extension in self.extensions or []:
            extension.define_macros.append(("PIPA_FAST_VERSION", f'"{version}"'))
        try:
            if MISSING is not None:
                raise RuntimeError(f"the build needs torch and pybind11: {MISSING}")
            super().run()
        except Exception as error:
            if "build_ext" in sys.argv or CUDA == "1":  # asked for by name: never left out silently
                raise
            self._go_without(error)

    def build_extension(self, ext: Extension) -> None:
        # A folder each: the extensions share sources and compile them with different flags.
        shared = self.build_temp
        self.build_temp = str(Path(shared, ext.name))
        if isinstance(ext, CudaExtension):
            headers = [h for h in ext.depends if Path(h).match("csrc/cuda/*.h")]
            ext.extra_objects = compile_cuda(Path(self.build_temp), headers)
            ext.depends = [*ext.depends, *ext.extra_objects]  # other flags make others
        super().build_extension(ext)
        self.build_temp = shared

    def _go_without(self, error: Exception) -> None:
        warnings.warn(
            f"pipa_fast: the native extensions were not built ({type(error).__name__}: {error}). "
            "The package is installed without them and runs on its reference backend. For the "
            "fast CPU backend, install a C++17 compiler and run "
            "`pip install --no-build-isolation --force-reinstall --no-deps .` again.",
            stacklevel=1,
        )
        self.extensions = []


# Through the mapping, kernels/ is packaged from an sdist too, and from a copy of the tree that lost
# the link pipa_fast/kernels. The link serves what the mapping cannot: PYTHONPATH and type checkers.
KERNELS = "pipa_fast.kernels"
setup(
    packages=sorted({*find_packages(include=["pipa_fast", "pipa_fast.*"]), KERNELS}),
    package_dir={KERNELS: "kernels"},
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildNative},
)
