# SPDX-License-Identifier: Apache-2.0
"""What holds of every example: short, listed, and with the command that runs it."""

import ast
import re

import pytest

from tests.examples.load import EXAMPLES

FILES = sorted(EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_example_is_short_and_says_how_it_is_run(path):
    text = path.read_text()
    assert len(text.splitlines()) < 120
    assert f"    python examples/{path.name}" in ast.get_docstring(ast.parse(text), clean=False)
    imported = re.findall(r"^(?:from|import) (pipa_fast[\w.]*).*$", text, re.MULTILINE)
    assert imported and not [module for module in imported if "._" in module]
    assert (EXAMPLES.parent / "tests/examples" / f"test_{path.name}").exists()


def test_readme_lists_every_example():
    listed = re.findall(r"^\| \[`([\w/.]+)`\]", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    there = [p.name for p in [*FILES, *EXAMPLES.glob("*.ipynb")]] + ["cluster"]
    assert sorted(listed) == sorted(there)
