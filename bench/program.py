# SPDX-License-Identifier: Apache-2.0
"""What all command lines of bench have in common."""

import argparse


def make_parser(module: str, documentation: str | None) -> argparse.ArgumentParser:
    """Return a parser for `python -m MODULE`, whose help is the docstring as it is written."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=documentation,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
