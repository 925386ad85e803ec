# SPDX-License-Identifier: Apache-2.0
"""One entry to every command: `pipa-fast train ...` is `python -m pipa_fast.train ...`.

pipa-fast train --config streets_pipa --seed 1
pipa-fast evaluate --run runs/streets_pipa
eval "$(pipa-fast completion bash)"
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from pipa_fast import __version__
from pipa_fast.checks import did_you_mean
from pipa_fast.program import SCRIPT, Parser

COMMANDS = {
    "train": "train a recipe; several processes: torchrun -m pipa_fast.train",
    "evaluate": "score a run on a dataset, class by class",
    "predict": "segment images or a video",
    "compare": "put runs side by side: a table, curves, classes, pictures",
    "prepare": "check a dataset's folders and take its class statistics",
    "export": "write a run's network for others: a folder for the hub, ONNX, torch.export",
    "convert": "make a run's folder of a published checkpoint",
    "info": "what is installed, what this machine has, which backends run and why others do not",
}
SHELLS = ("bash", "zsh", "tcsh")


def overview() -> argparse.ArgumentParser:
    """Return the parser of what comes before a command's own options."""
    lines = [f"  {name:10}  {text}" for name, text in COMMANDS.items()]
    made = Parser(
        prog=SCRIPT,
        usage=f"{SCRIPT} COMMAND [OPTION ...]",
        description="Domain-adaptive semantic segmentation with pixel and patch contrast.\n\n"
        "commands:\n" + "\n".join(lines) + "\n  completion  print what completes these in a "
        f'shell: eval "$({SCRIPT} completion bash)"; or zsh, tcsh',
        epilog=f"example: {SCRIPT} train --config streets_pipa\n"
        f"         {SCRIPT} COMMAND --help tells a command's options",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("command", choices=[*COMMANDS, "completion"], help=argparse.SUPPRESS)
    made.add_argument("--version", action="version", version=f"pipa_fast {__version__}")
    return made


def completion(argv: Sequence[str]) -> int:
    """Print a shell's completion script, made by shtab from the commands' own parsers."""
    import shtab

    asked = Parser(prog=f"{SCRIPT} completion")
    asked.add_argument("shell", choices=SHELLS)
    shell = asked.parse_args(argv).shell
    whole = argparse.ArgumentParser(prog=SCRIPT)
    whole.add_argument("--version", action="store_true")
    commands = whole.add_subparsers()
    for name, text in COMMANDS.items():
        own = import_module(f"pipa_fast.{name}").parser()
        part = commands.add_parser(name, help=text, add_help=False)
        _copy(own, part)
        if name == "train":  # whose parser is given the long form in its place
            part.add_argument("--resume", choices=["auto", "never"])
    _copy(asked, commands.add_parser("completion", help="a shell's completion", add_help=False))
    print(shtab.complete(whole, shell))
    return 0


def _copy(own: argparse.ArgumentParser, into: argparse.ArgumentParser) -> None:
    """Give one parser the option names, choices and subcommands of another.

    Not the actions themselves: those of training's parser are jsonargparse's own kinds.
    """
    for action in own._actions:
        if isinstance(action, argparse._SubParsersAction):
            parts = into.add_subparsers()
            for name, part in action.choices.items():
                # shtab passes over those without a help text
                _copy(part, parts.add_parser(name, help=name, add_help=False))
            continue
        # Its text may hold shells' own signs, and says little in a list.
        choices = None if action.choices is None else [str(c) for c in action.choices]
        if action.nargs == 0:
            into.add_argument(*action.option_strings, action="store_true")
        elif action.option_strings:
            into.add_argument(*action.option_strings, choices=choices)
        else:
            into.add_argument(action.dest, choices=choices)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the process's exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words:
        overview().print_help()
        return 2
    name, *rest = words
    if name == "completion":
        return completion(rest)
    if name in COMMANDS:
        # torch's record, around training's, makes None of an exit with 0
        return import_module(f"pipa_fast.{name}").main(rest) or 0
    if not name.startswith("-"):
        overview().error(f"there is no command {name!r}{did_you_mean(name, COMMANDS)}")
    overview().parse_args(words)
    return 0
