# SPDX-License-Identifier: Apache-2.0
"""The site builds without a warning, and fetches nothing."""

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from pipa_fast import data, models, ops, uda
from pipa_fast.data.loader import DataConfig
from pipa_fast.models import ModelConfig
from pipa_fast.training.config import Config, OptimizerConfig, RunConfig
from pipa_fast.uda.config import PatchConfig
from tests.docs.documents import ROOT

PUBLIC = {"ops": ops, "models": models, "data": data, "uda": uda}

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("material") is None,
    reason="MkDocs is not installed: make docs",
)


def hooks() -> ModuleType:
    path = ROOT / "docs" / "_hooks.py"
    spec = importlib.util.spec_from_file_location("docs_hooks", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_that_leave_docs_are_followed():
    made = hooks()
    assert made.of_site("docs/api/ops.md") == "api/ops.md"
    assert made.of_site("README.md") == "repository/README.md"
    assert made.of_site("bench/results") == "repository/bench/results/README.md"
    assert made.of_site("bench/results/AMD_EPYC_avx2").endswith("AMD_EPYC_avx2/index.md")
    for uri in ("api/ops.md", "repository/README.md"):
        assert made.of_site(made.of_repository(uri)) == uri
    text = "[a](../README.md) [b](losses.md) [c](https://x) [d](../nosuch)\n"
    text += "```python\nx[0](../setup.py)\n```"
    assert made.targets(text, "docs/index.md") == ["README.md"]
    page = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    moved = made.on_page_markdown(text, page, None, None)
    assert "[a](repository/README.md) [b](losses.md) [c](https://x) [d](../nosuch)" in moved
    assert "x[0](../setup.py)" in moved


@pytest.mark.slow
def test_site_builds_and_fetches_nothing(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    fetched = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"?(https?:[^\" >]+)")
    for page in tmp_path.rglob("*.html"):
        assert not fetched.findall(page.read_text()), page
    for style in tmp_path.rglob("*.css"):
        assert not re.findall(r"url\(\"?https?:", style.read_text()), style
    for page, module in PUBLIC.items():
        text = (tmp_path / "api" / f"{page}.html").read_text()
        for name in module.__all__:
            if callable(getattr(module, name)) and not name.endswith("Config"):
                assert re.search(rf'<h\d id="[\w.]*\.{name}"', text), f"{page}: {name}"
    text = (tmp_path / "api" / "settings.html").read_text()
    for config in (Config, DataConfig, ModelConfig, OptimizerConfig, PatchConfig, RunConfig):
        for entry in fields(config):
            assert re.search(rf'<h\d id="[\w.]*\.{config.__name__}\.{entry.name}"', text), entry
