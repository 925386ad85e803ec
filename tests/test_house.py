# SPDX-License-Identifier: Apache-2.0
"""The house's own rules: sizes, licence lines, the arrow of imports, and commands that agree.

Documents have tests of their own in tests/docs.
"""

import ast
import json
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pipa_fast"

# Who stands above whom. A module imports from its own room and from lower ones, never sideways
# or upwards; losses alone may use its neighbour, the bank.
LEVELS = {
    **dict.fromkeys(["checks", "program", "trace"], 0),
    **dict.fromkeys(["reference", "kernels", "_C", "_host"], 1),
    "ops": 2,
    "bank": 3,
    **dict.fromkeys(["losses", "models", "data"], 4),
    "uda": 5,
    "evaluation": 6,
    "training": 7,
    **dict.fromkeys(
        ["train", "evaluate", "predict", "compare", "convert", "export", "prepare", "info"], 9
    ),
    "pretrained": 8,
    "cli": 10,
    "__main__": 11,
}


def sources(*suffixes: str) -> list[Path]:
    """Source files of every room, each once (pipa_fast/kernels is a link to kernels)."""
    rooms = ["pipa_fast", "kernels", "csrc", "bench", "docs", "examples", "tests"]
    found = [p for room in rooms for p in (ROOT / room).rglob("*") if p.suffix in suffixes]
    linked = [p for p in found if (PACKAGE / "kernels") in p.parents]
    hidden = {"__pycache__", "build"}
    return sorted({p for p in found if not hidden & set(p.parts)} - set(linked)) + [
        p for p in [ROOT / "setup.py"] if p.suffix in suffixes
    ]


PYTHON = sources(".py", ".pyi")
NATIVE = sources(".cpp", ".h", ".cu", ".cuh")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [*PYTHON, *NATIVE], ids=name)
def test_source_file_is_short_and_licensed(path: Path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 500, f"{len(lines)} lines: split it"
    assert lines and "SPDX-License-Identifier: Apache-2.0" in lines[0]


def code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from its `def` on, its docstring not counted."""
    documented = ast.get_docstring(node) is not None
    text = node.body[0].end_lineno - node.body[0].lineno + 1 if documented else 0
    return node.end_lineno - node.lineno + 1 - text


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_functions_fit_on_a_screen(path: Path):
    lengths = {
        node.name: code_lines(node)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {k: n for k, n in lengths.items() if n > 60} == {}


def imported_modules(path: Path) -> set[str]:
    """Absolute names of what a file of the package imports, relative imports resolved."""
    names = set()
    inside = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(inside[: len(inside) - node.level]) if node.level else ""
            module = ".".join(part for part in [base, node.module] if part)
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def room(module: str) -> str | None:
    """The room of a module of ours, None for a foreign module or the package's own root."""
    parts = module.split(".")
    return parts[1] if parts[0] == "pipa_fast" and len(parts) > 1 and parts[1] in LEVELS else None


@pytest.mark.parametrize("path", [p for p in PYTHON if PACKAGE in p.parents], ids=name)
def test_imports_go_one_way(path: Path):
    here = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if here is None:
        assert path == PACKAGE / "__init__.py", f"{path.name}: give its room a level"
        return
    there = {room(module) for module in imported_modules(path)} - {here, None}
    wrong = {other for other in there if LEVELS[other] >= LEVELS[here]}
    assert not wrong, f"{here} (level {LEVELS[here]}) imports {sorted(wrong)}"


def test_kernels_are_linked_into_the_package():
    assert (PACKAGE / "kernels").resolve() == ROOT / "kernels"


# ---- commands ----


def test_make_names_recipes_that_exist():
    for recipe in re.findall(r"--config (\w+)", (ROOT / "Makefile").read_text()):
        assert (PACKAGE / "recipes" / f"{recipe}.yaml").exists(), recipe


def test_hooks_run_the_lint_targets():
    hooks = re.findall(
        r"entry: make --no-print-directory ([\w-]+)", (ROOT / ".pre-commit-config.yaml").read_text()
    )
    lint = re.search(r"^lint: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert lint and hooks == lint.group(1).split()


def test_ci_runs_what_people_run():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert re.search(r"^make .*\blint\b", script.read_text(), re.MULTILINE)
    assert re.search(r"^make test\b", script.read_text(), re.MULTILINE)


def test_readme_shows_the_committed_ablation():
    path = ROOT / "bench" / "results" / "streets_ablation.json"
    readme = (ROOT / "README.md").read_text()
    for arm in json.loads(path.read_text())["arms"].values():
        row = f"| `{arm['recipe']}` | {arm['miou_mean']:.1f} ± {arm['miou_std']:.1f} |"
        assert row in readme, row
