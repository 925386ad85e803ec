# SPDX-License-Identifier: Apache-2.0
"""The site builds without a warning, and fetches nothing."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.documents import ROOT

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
    ops = (tmp_path / "api" / "ops.html").read_text()
    assert "pixel_contrast" in ops and "denominator" in ops
