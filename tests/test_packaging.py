# SPDX-License-Identifier: Apache-2.0
"""The sdist and the wheel hold what they should, and what is installed from them runs anywhere."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = (
    ".git",
    ".venv*",
    "build",
    "dist",
    "runs",
    "*.egg-info",
    "*.so",
    "__pycache__",
    ".*_cache",
)

# Runs in a process of its own, away from the repository, on what was installed.
USE = """
import sys
from importlib import resources
from pathlib import Path
import torch
import pipa_fast, pipa_fast.kernels
from pipa_fast import ops

target, expected = Path(sys.argv[1]), sys.argv[2].split(",")
assert target in Path(pipa_fast.__file__).parents, pipa_fast.__file__
assert target in Path(pipa_fast.kernels.__file__).parents, pipa_fast.kernels.__file__
recipes = resources.files("pipa_fast").joinpath("recipes").iterdir()
assert "streets_pipa.yaml" in [recipe.name for recipe in recipes]
assert ops.backends("pixel_contrast", "cpu") == expected, ops.backends("pixel_contrast", "cpu")
x = torch.nn.functional.normalize(torch.randn(50, 16), dim=1).requires_grad_()
y = torch.arange(50) % 3
for backend in expected:
    loss = ops.pixel_contrast(x, y, backend=backend)
    torch.testing.assert_close(loss, ops.pixel_contrast(x, y, backend="reference"))
    loss.backward()
"""


def python(*arguments: str, cwd: Path, **environment: str) -> str:
    """Runs this Python; returns what it printed. A failure shows both streams."""
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "MAX_JOBS": "2", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-6000:]
    return result.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the repository, so that builds leave no trace in it."""
    for tool in ("build", "pybind11", "ninja"):
        pytest.importorskip(tool)
    copy = tmp_path_factory.mktemp("packaging") / "tree"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    return copy


@pytest.fixture(scope="module")
def sdist(tree: Path) -> Path:
    out = tree.parent / "sdist"
    python("-m", "build", "--sdist", "--no-isolation", "--outdir", str(out), cwd=tree)
    return next(out.glob("*.tar.gz"))


def build_wheel(source: Path, out: Path, **environment: str) -> Path:
    command = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    python(*command, cwd=source, **environment)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """Built from the sdist alone, so that a file that it lacks is missed."""
    unpacked = sdist.parent / "unpacked"
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    return build_wheel(next(unpacked.iterdir()), sdist.parent / "wheel", PIPA_FAST_CUDA="0")


# The environment that runs the tests has the repository installed in place, and its finder would
# find there what the installed package lacks.
ALONE = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if not f.__module__.startswith("__editable__")]
"""


def install(wheel: Path, target: Path) -> Path:
    options = ["--no-deps", "--no-index", "--quiet", "--target", str(target)]
    python("-m", "pip", "install", *options, str(wheel), cwd=target.parent)
    (target / "sitecustomize.py").write_text(ALONE)
    return target


def names_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def assert_package_is_whole(names: set[str]) -> None:
    for path in ["__init__.py", "py.typed", "_C.pyi", "ops/pixel_contrast.py", "ops/fastest.json"]:
        assert f"pipa_fast/{path}" in names
    sources = [p for p in (ROOT / "pipa_fast").rglob("*.py") if "__pycache__" not in p.parts]
    sources += (ROOT / "pipa_fast" / "recipes").glob("*.yaml")
    assert {str(p.relative_to(ROOT)) for p in sources} <= names
    assert {f"pipa_fast/kernels/{p.name}" for p in (ROOT / "kernels").glob("*.py")} <= names
    tops = {name.split("/")[0] for name in names}
    assert tops == {"pipa_fast", next(t for t in tops if t.endswith(".dist-info"))}, tops


def test_what_the_sdist_grafts_is_there():
    lines = (ROOT / "MANIFEST.in").read_text().splitlines()
    grafted = [line.split()[1] for line in lines if line.startswith("graft")]
    assert grafted and all((ROOT / folder).is_dir() for folder in grafted)


def test_developers_have_what_the_bench_compares_with():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = extras["optional-dependencies"]
    assert set(extras["bench"]) <= set(extras["dev"])


def test_sdist_has_what_a_build_needs(sdist: Path):
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for folder, pattern in (("csrc", "**/*.*"), ("kernels", "*.py"), ("tests", "**/*.py")):
        files = {str(p.relative_to(ROOT)) for p in (ROOT / folder).glob(pattern) if p.is_file()}
        assert {f for f in files if "__pycache__" not in f} <= names
    assert {"setup.py", "pyproject.toml", "LICENSE"} <= names
    assert {"constraints.txt", "constraints-oldest.txt"} <= names
    assert not any(name.endswith((".so", ".pyc")) for name in names)


def test_wheel_from_the_sdist_installs_and_runs(wheel: Path, tmp_path: Path):
    names = names_of(wheel)
    assert_package_is_whole(names)
    assert "pipa_fast/_C.abi3.so" in names
    assert any(name.startswith("pipa_fast/_host.cpython") for name in names)
    version = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert f"-{version}-{version}-" in wheel.name, "pybind11 binds a wheel to one Python"
    assert wheel.stat().st_size < 3e6, "stripped"
    target = install(wheel, tmp_path / "site")
    away = tmp_path / "away"
    away.mkdir()
    python("-c", USE, str(target), "cpu,reference", cwd=away, PYTHONPATH=str(target))


@pytest.mark.slow
@pytest.mark.parametrize("linked", [True, False], ids=["link", "link lost"])
def test_wheel_from_the_tree_without_a_compiler(tree: Path, tmp_path: Path, linked: bool):
    source = tmp_path / "source"
    shutil.copytree(tree, source, symlinks=True)
    if not linked:  # some transports drop symbolic links
        (source / "pipa_fast" / "kernels").unlink()
    out = tmp_path / "wheel"
    command = ["-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation", "-w", str(out), "."]
    said = python(*command, cwd=source, CXX="/no/such/c++", CC="/no/such/cc")
    assert "native extensions were not built" in said
    wheel = next(out.glob("*.whl"))
    names = names_of(wheel)
    assert_package_is_whole(names)
    assert not any(name.endswith(".so") for name in names)
    target = install(wheel, tmp_path / "site")
    environment = {"PYTHONPATH": str(target)}
    python("-c", USE, str(target), "reference", cwd=tmp_path, **environment)
    told = python("-m", "pipa_fast.info", cwd=tmp_path, **environment)
    assert "the C++ extension pipa_fast._C does not load" in told


@pytest.mark.slow
def test_a_broken_compiler_fails_the_developers_build(tree: Path):
    with pytest.raises(AssertionError):
        python("setup.py", "build_ext", "--inplace", cwd=tree, CXX="/no/such/c++", CC="/no/such/cc")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"PIPA_FAST_CUDA": "1", "PATH": "/no/such/folder"}, "need nvcc on the PATH"),
        ({"PIPA_FAST_CUDA": "yes"}, "must be 0 or 1, got 'yes'"),
        ({"PIPA_FAST_CUDA_ARCHS": "sm_80"}, "must be as in .*, got 'sm_80'"),
        ({"PIPA_FAST_CUDA_ARCHS": " "}, "must be as in"),
    ],
)
def test_asking_for_cuda_never_builds_for_the_cpu_alone(asked: dict[str, str], message: str):
    with pytest.raises(AssertionError, match=message):
        python("setup.py", "--version", cwd=ROOT, **asked)


NVCC = """#!/bin/sh
[ "$1" = --version ] && { echo "release $RELEASE"; exit; }
[ "$1" = --dryrun ] && exit
for word; do object=$word; done
[ "$(basename "$object" .o)" = "$BROKEN" ] && exit 1
echo "release $RELEASE: $*" > "$object"
"""


# In a process of its own: setuptools wants to be there before anything that imports distutils.
OBJECTS = """
import json, pathlib, runpy, sys, setuptools
setuptools.setup = lambda **_: None
compile_cuda = runpy.run_path("setup.py")["compile_cuda"]
headers = [str(path) for path in pathlib.Path("csrc/cuda").glob("*.h")]
made = compile_cuda(pathlib.Path(sys.argv[1]), headers)
print(json.dumps([pathlib.Path(path).read_text() for path in made]))
"""


def test_objects_of_another_build_are_compiled_again(tmp_path: Path):
    """For other GPUs, though that build failed half-way; or by another nvcc."""
    compiler = tmp_path / "bin" / "nvcc"
    compiler.parent.mkdir()
    compiler.write_text(NVCC)
    compiler.chmod(0o755)

    def objects(archs: str, release: str, broken: str = "") -> list[str]:
        """What setup.py links, for GPUs, of a folder that builds share: see NVCC."""
        asked = {"PIPA_FAST_CUDA": "1", "PIPA_FAST_CUDA_ARCHS": archs}
        asked |= {"RELEASE": release, "BROKEN": broken}
        asked["PATH"] = f"{compiler.parent}:{os.environ['PATH']}"
        return json.loads(python("-c", OBJECTS, str(tmp_path), cwd=ROOT, **asked).splitlines()[-1])

    both = objects("80 90a", "12")
    with pytest.raises(AssertionError, match="nvcc.* returned non-zero"):
        objects("90a", "12", broken="runtime")  # the last one
    assert objects("80 90a", "12") == both
    assert all("release 13" in made for made in objects("80 90a", "13"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_cuda_kernels_are_built_beside_a_torch_without_cuda_and_load(tree: Path):
    """Without a driver too, which they then name."""
    python("setup.py", "build_ext", "--inplace", cwd=tree, PIPA_FAST_CUDA="1")
    use = "import torch, pipa_fast._CUDA as c; print(torch.ops.pipa_fast_cuda, repr(c.why_not()))"
    told = python("-c", use, cwd=tree, PYTHONPATH=str(tree))
    assert "pipa_fast_cuda" in told
    if not torch.cuda.is_available():
        assert "CUDA driver" in told or "no CUDA-capable device" in told
