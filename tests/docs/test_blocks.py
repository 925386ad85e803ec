# SPDX-License-Identifier: Apache-2.0
"""Python and YAML in the documents run and load as they stand."""

from pathlib import Path

import pytest
import torch
import yaml

from pipa_fast.training.config import load, read_recipe
from tests.docs.documents import DOCUMENTS, blocks, name

WITH_PYTHON = [path for path in DOCUMENTS if blocks(path, "python")]


@pytest.mark.parametrize("path", WITH_PYTHON, ids=name)
def test_python_blocks_run(path: Path):
    """Every block of a page, in order, in one namespace."""
    if "pytorch_metric_learning" in path.read_text():
        pytest.importorskip("pytorch_metric_learning")
    torch.manual_seed(0)
    namespace: dict[str, object] = {}
    for block in blocks(path, "python"):
        if block.reason is None:
            code = "\n" * (block.line - 1) + block.text  # so that a traceback has the page's line
            exec(compile(code, name(path), "exec"), namespace)


def test_blocks_that_do_not_run_are_known():
    left_out = {
        (name(path), block.reason)
        for path in DOCUMENTS
        for block in blocks(path, "python")
        if block.reason is not None
    }
    assert left_out == {
        ("docs/quickstart.md", "it needs the folder of a run that was trained"),
    }


def test_the_three_people_have_code_that_runs():
    pages = {name(path) for path in WITH_PYTHON}
    assert {"README.md", "docs/losses.md", "docs/mathematics.md", "docs/kernels.md"} <= pages


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if blocks(p, "yaml")], ids=name)
def test_recipes_load(path: Path, tmp_path: Path):
    for i, block in enumerate(blocks(path, "yaml")):
        if "base" not in (yaml.safe_load(block.text) or {}):
            continue
        mine = tmp_path / f"mine{i}.yaml"
        mine.write_text(block.text)
        load(read_recipe(str(mine)))


def test_every_fence_says_what_it_holds():
    known = {"python", "console", "yaml", "text", "bibtex"}
    for path in DOCUMENTS:
        fences = [line.strip() for line in path.read_text().splitlines() if "```" in line]
        opening = fences[::2]
        assert {f.removeprefix("```") for f in opening} <= known, name(path)
