# SPDX-License-Identifier: Apache-2.0
"""The site builds without a warning, and fetches nothing."""

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

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
