# SPDX-License-Identifier: Apache-2.0
"""Commands in the documents: programs, targets and recipes that exist, with options they take."""

import argparse
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from pipa_fast.cli import COMMANDS, SHELLS
from pipa_fast.program import Parser
from pipa_fast.training.config import parse, recipes
from tests.docs.documents import DOCUMENTS, ROOT, blocks, name, prose

# Programs of others, whose options are not ours to check
FOREIGN = {"git", "pip", "cd", "sbatch", "bash", "eval"}
FOREIGN_MODULES = {"timeit"}
# What a person puts in
PLACEHOLDER = re.compile(
    r"…|\.\.\.|\b(OP|NAME|FILES|FILE|FOLDER|PICTURE|DATASET|RECIPE|X|DEVICE)\b"
)


class Parsed(Exception):
    """A program has read its command line, and nothing else was to be tried."""


def console_commands(path: Path) -> list[str]:
    """Return the commands of a document's console blocks, each on one line."""
    found = []
    for block in blocks(path, "console"):
        text = re.sub(r"\\\n\s*", " ", block.text)
        found += [line[2:] for line in text.splitlines() if line.startswith("$ ")]
    return found


def inline_commands(path: Path) -> list[str]:
    """Return the commands in a document's sentences, but for those with places to fill in."""
    text = re.sub(r"\s+", " ", prose(path))
    found = re.findall(r"`((?:python -m (?:pipa_fast|bench)|pipa-fast |bench/\w+\.sh)[^`]*)`", text)
    return [command for command in found if not PLACEHOLDER.search(command)]


def words_of(command: str) -> list[str]:
    """Return a command's words without comment, environment and the folder of its program."""
    words = shlex.split(command, comments=True)
    while words and re.match(r"[A-Z_0-9]+=", words[0]):
        words = words[1:]
    if "&&" in words:
        words = words[: words.index("&&")]
    return [words[0].removeprefix(".venv/bin/"), *words[1:]] if words else []


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def takes(
    module: str, argv: list[str], monkeypatch: pytest.MonkeyPatch, *, whole_line: bool
) -> None:
    """Let a program read its command line, and stop it there.

    In sentences, commands may leave out what must be given.
    """
    if "--help" in argv:
        return
    if module == "pipa_fast.train":
        mine = ["streets_pipa" if word.endswith("mine.yaml") else word for word in argv]
        parse(mine)  # ends the process where it is wrong
        return
    program = importlib.import_module(f"{module}.__main__" if module == "bench" else module)
    inside: list[bool] = []
    whole = argparse.ArgumentParser.parse_args
    some = argparse.ArgumentParser.parse_known_args
    complain = argparse.ArgumentParser.error

    def parse_args(self, *args, **kwargs):
        inside.append(True)
        whole(self, *args, **kwargs)
        raise Parsed

    def parse_known_args(self, *args, **kwargs):
        found = some(self, *args, **kwargs)
        if not inside:
            raise Parsed
        return found

    def error(self, message):
        if message.startswith("the following arguments are required") and not whole_line:
            raise Parsed
        complain(self, message)

    with monkeypatch.context() as patch:
        for parser in (argparse.ArgumentParser, Parser):
            patch.setattr(parser, "error", error)
        patch.setattr(sys, "argv", [module, *argv])
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)
        with pytest.raises(Parsed):
            program.main()


def is_module(module: str) -> bool:
    file = ROOT / Path(*module.split("."))
    return file.with_suffix(".py").exists() or (file / "__main__.py").exists()


def check(command: str, monkeypatch: pytest.MonkeyPatch, *, whole_line: bool = True) -> None:
    words = words_of(command)
    program, rest = words[0], words[1:]
    if program in FOREIGN:
        return
    if program == "make":
        targets = [word for word in rest if "=" not in word and not word.startswith("-")]
        assert set(targets) <= make_targets(), command
    elif program == "pipa-fast" and rest[0] == "completion":
        assert rest[1:] in [[shell] for shell in SHELLS], command
    elif program == "pipa-fast":
        assert rest[0] in COMMANDS, command
        takes(f"pipa_fast.{rest[0]}", rest[1:], monkeypatch, whole_line=whole_line)
    elif program in ("python", "torchrun"):
        assert "-m" in rest, command
        after = rest[rest.index("-m") + 1 :]
        # torchrun takes all that follows -- as the module's
        module, *argv = after[1:] if after[:1] == ["--"] else after
        if module in FOREIGN_MODULES:
            return
        assert is_module(module), command
        source = ROOT / Path(*module.split("."))
        source = source / "__main__.py" if source.is_dir() else source.with_suffix(".py")
        parsers = ("ArgumentParser(", "make_parser(")
        if module != "pipa_fast.train" and not any(p in source.read_text() for p in parsers):
            assert not argv, f"{command}: {module} takes no options"
        else:
            takes(module, argv, monkeypatch, whole_line=whole_line)
    else:
        assert (ROOT / program).is_file(), f"{command}: {program} is not known"


WITH_COMMANDS = [path for path in DOCUMENTS if console_commands(path) + inline_commands(path)]


@pytest.mark.parametrize("path", WITH_COMMANDS, ids=name)
def test_commands_are_taken(path: Path, monkeypatch: pytest.MonkeyPatch):
    alone = console_commands(path)
    for command in [*alone, *inline_commands(path)]:
        try:
            check(command, monkeypatch, whole_line=command in alone)
        except SystemExit as error:
            pytest.fail(f"{name(path)}: {command}\nends with {error}")


def test_a_wrong_option_is_seen(monkeypatch: pytest.MonkeyPatch, capsys):
    for command in (
        "python -m pipa_fast.train --config streets_pipa --no.such 1",
        "python -m pipa_fast.evaluate --run runs/x --no-such",
        "python -m bench pixel_contrast --no-such 3",
        "python -m pipa_fast.prepare gta5 --root x --no-such",
        "pipa-fast predict x --run y --out z --no-such",
    ):
        with pytest.raises(SystemExit):
            check(command, monkeypatch)
    for command in ("make nosuch", "python -m pipa_fast.nosuch", "nosuch/program"):
        with pytest.raises(AssertionError):
            check(command, monkeypatch)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_documents_name_targets_recipes_and_files_that_exist(path: Path):
    text = path.read_text()
    assert set(re.findall(r"\bmake ([a-z-]+)`", text)) <= make_targets()
    for recipe in re.findall(r"--(?:config|recipe) (\w+)\b(?!\.)", text):
        quoted = recipe == "must"  # the message "--config must name …"
        assert recipe.isupper() or recipe in recipes() or quoted, recipe
    for recipe in re.findall(r"`((?:streets|gta2cs|syn2cs|cs2\w+?)_\w+)`", text):
        assert recipe in recipes() or recipe == "streets_s", recipe
    for file in re.findall(r"`((?:pipa_fast|kernels|csrc|bench|tests|docs)/[\w./]+)`", text):
        # NAME and the like stand for the reader's own; results are there once measured
        if not re.search(r"[A-Z]{2}", file) and not file.startswith("bench/results"):
            assert (ROOT / file).exists(), file
