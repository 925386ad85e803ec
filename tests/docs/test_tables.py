# SPDX-License-Identifier: Apache-2.0
"""Settings and messages that the documents quote are the program's own."""

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path

import pytest

from pipa_fast.info import VARIABLES
from pipa_fast.training.config import Config, load, read_recipe
from tests.docs.documents import DOCUMENTS, ROOT, name, rows

HOLE = "…"
MIGRATING = ROOT / "docs" / "migrating.md"
TROUBLES = ROOT / "docs" / "troubleshooting.md"


@cache
def settings() -> frozenset[str]:
    def names(config: type, prefix: str = "") -> Iterator[str]:
        for entry in fields(config):
            yield f"{prefix}{entry.name}"
            if is_dataclass(entry.type):
                yield from names(entry.type, f"{prefix}{entry.name}.")  # type: ignore[arg-type]

    return frozenset(names(Config))


SECTIONS = "data|model|adaptation|optimizer|evaluation|run"


def test_our_keys_in_the_tables_of_other_code_bases_exist():
    ours = [
        key
        for cells in rows(MIGRATING)
        if len(cells) == 3
        for key in re.findall(r"`([\w.]+)`", cells[1])
    ]
    assert len(ours) > 60
    assert set(ours) <= settings(), sorted(set(ours) - settings())


def test_every_setting_of_the_method_has_a_row():
    """Whoever comes from the lineage finds each loss term's setting, or it is new here."""
    text = MIGRATING.read_text()
    new = {  # not in any of the releases
        "adaptation.pixel.images",
        "adaptation.pixel.confidence",
        "adaptation.pixel.weigh_by_confidence",
        "adaptation.patch.bank_confidence",
        "adaptation.patch.augment",
        "adaptation.pixel.denominator",
    }
    shared = ("weight", "start", "ramp", "average")  # in several sections, shown in some
    wanted = {
        key
        for key in settings()
        if re.match(r"adaptation\.\w+\.\w+$", key) and not key.endswith(shared)
    }
    assert {key for key in wanted - new if f"`{key}`" not in text} == set()


SMALLER = [
    (recipe, words)
    for cells in rows(ROOT / "docs" / "gta5_to_cityscapes.md")
    if len(cells) == 3
    for words in re.findall(r"`(--[^`]*)`", cells[1])
    for recipe in re.findall(r"`(\w+)`", cells[0]) or ("gta2cs_daformer_pipa", "gta2cs_hrda_pipa")
]


@pytest.mark.parametrize(("recipe", "words"), SMALLER)
def test_what_makes_a_run_smaller_is_taken_by_its_recipe(recipe: str, words: str):
    assert load(read_recipe(recipe), shlex.split(words)) != load(read_recipe(recipe))


def test_both_recipes_have_ways_to_be_smaller():
    assert len([recipe for recipe, _ in SMALLER if "hrda" in recipe]) >= 5
    assert len(SMALLER) >= 10


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_options_and_settings_in_sentences_exist(path: Path):
    text = path.read_text()
    for option in re.findall(rf"--((?:{SECTIONS})\.[\w.]+\w)", text):
        assert option in settings(), option
    if path == MIGRATING:
        text = "\n".join(" ".join(cells[1:]) for cells in rows(path))
    for key in re.findall(r"`((?:adaptation|optimizer|evaluation|run)\.\w[\w.]*)[:=`]", text):
        assert key in settings() or key.startswith("run.sh"), key


def test_every_variable_of_the_environment_has_a_row():
    text = (ROOT / "docs" / "backends.md").read_text()
    read = {
        variable
        for source in [*(ROOT / "pipa_fast").rglob("*.py"), *(ROOT / "csrc").rglob("*.cu")]
        for variable in re.findall(
            r"(?:getenv|environ\.get)\(\"(PIPA_FAST_\w+)", source.read_text()
        )
    }
    assert read
    reported = {variable for variable in VARIABLES if variable.startswith("PIPA_FAST_")}
    assert read <= reported, "info --report tells each"
    for variable in read | reported:
        assert f"| `{variable}` |" in text, variable


# ---- messages ----


def template(node: ast.AST) -> str:
    """Return a text expression with holes where values go."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    return HOLE


@cache
def messages() -> tuple[str, ...]:
    """Return every text of the package, and what `require` makes of its arguments."""
    found = set()
    for path in (ROOT / "pipa_fast").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require":
                _, argument, _, expected = (template(arg) for arg in node.args)
                found.add(f"{argument} must be {expected}; got {HOLE}")
            elif isinstance(node, ast.JoinedStr | ast.Constant | ast.BinOp):
                found.add(template(node))
    return tuple(found)


def quoted() -> list[str]:
    """Return the messages that the page on troubles quotes as ours."""
    ours, _, others = TROUBLES.read_text().partition("## Messages of others")
    assert others
    found = []
    for line in ours.splitlines():
        if line.startswith("| `"):
            found += re.findall(r"`([^`]+)`", line.split(" | ")[0])
    return found


@pytest.mark.parametrize("message", quoted())
def test_quoted_messages_are_ours(message: str):
    parts = message.split(HOLE)
    assert sum(len(part.strip()) for part in parts) >= 7, "too little to tell it from others"
    pattern = re.compile(".*".join(re.escape(part) for part in parts), re.DOTALL)
    assert any(pattern.search(text) for text in messages())


def test_a_message_that_is_not_ours_is_seen():
    assert not any("no such message exists" in text for text in messages())
    assert len(quoted()) > 50
