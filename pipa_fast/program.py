# SPDX-License-Identifier: Apache-2.0
"""What all commands have in common."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

SCRIPT = "pipa-fast"

CTRL_C = 130
"""Exit status after Ctrl-C, which ends the script that a command is part of, too."""


def cores() -> int:
    """Return how many cores this process may use: a job or a container may have a part of them."""
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def program(command: str) -> str:
    """Return how a command was called: pipa-fast NAME, or python -m pipa_fast.NAME."""
    called = Path(sys.argv[0])
    if called.name == SCRIPT:
        return f"{SCRIPT} {command}"
    whole = (called.parent.name, called.name) == ("pipa_fast", "__main__.py")
    return f"python -m pipa_fast {command}" if whole else f"python -m pipa_fast.{command}"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one paragraph, not below a page of usage."""

    def parse_known_args(self, args=None, namespace=None):
        """Refuse what no option takes: a subcommand would leave it to the parser above."""
        found, left = super().parse_known_args(args, namespace)
        if left:
            self.error(f"unrecognized arguments: {' '.join(left)}")
        return found, left

    def error(self, message: str) -> NoReturn:
        """End the process with 2."""
        end = "" if message.endswith((".", "!", "?")) else "."
        self.exit(2, f"error: {message}{end} `{self.prog} --help` lists the options.\n")


def make_parser(command: str, description: str, example: str, usage: str | None = None) -> Parser:
    """Return a command's parser; its help ends with an example, the command's name left out."""
    prog = program(command)
    end = f"example: {prog} {example}"
    return Parser(prog=prog, description=description, epilog=end, usage=usage)


def refuse_given(
    options: argparse.Namespace, parser: argparse.ArgumentParser, names: Sequence[str], why: str
) -> None:
    """Raise a ValueError for the first of `names` that does not have its default."""
    for name in names:
        if getattr(options, name) != parser.get_default(name):
            raise ValueError(f"{why}; leave out --{name.replace('_', '-')}")
