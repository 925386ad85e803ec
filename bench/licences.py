# SPDX-License-Identifier: Apache-2.0
"""Under what terms the packages stand that pipa_fast runs with, by their own metadata.

python -m bench.licences                              # the table
python -m bench.licences --markdown docs/licences.md  # the table of that document anew

Packages of extras that are not installed here are listed as such.
"""

import importlib.metadata
import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from bench.pins import plain
from bench.program import make_parser

ROOT = Path(__file__).resolve().parents[1]
TABLE = re.compile(
    r"(?<=\| package \| version \| licence \| asked for by \|\n\|---\|---\|---\|---\|\n)"
    r"(?:^\|.*\n)*",
    re.MULTILINE,
)


def licence_of(metadata: Any) -> str:
    """Return what a package says of its licence, shortest form first."""
    told = metadata.get("License-Expression") or ""
    if not told:
        classes = metadata.get_all("Classifier") or []
        found = [c.rsplit(" :: ", 1)[1] for c in classes if c.startswith("License ::")]
        told = ", ".join(name for name in found if name != "OSI Approved")
    if not told:
        told = (metadata.get("License") or "not told").strip().splitlines()[0]
    return told.replace("|", "/")


def needed(requirements: Iterable[str]) -> list[str]:
    """Return the names of the packages that requirements ask for here, without any extra."""
    parsed = map(Requirement, requirements)
    return [r.name for r in parsed if r.marker is None or r.marker.evaluate({"extra": ""})]


def rows() -> list[tuple[str, str, str, str]]:
    """Return (package, version, licence, who asks) of all that pipa_fast's requirements need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [(name, "pipa_fast") for name in needed(project["dependencies"])]
    for extra in ("bench", "export", "video"):
        wanted += [(name, f"[{extra}]") for name in needed(extras[extra])]
    found: dict[str, tuple[str, str, str, str]] = {}
    while wanted:
        name, by = wanted.pop(0)
        if plain(name) in found:
            continue
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            if by.startswith(("pipa_fast", "[")):
                found[plain(name)] = (name, "not installed", "see its page", by)
            continue
        metadata = package.metadata
        found[plain(name)] = (metadata["Name"], package.version, licence_of(metadata), by)
        wanted += [(name, metadata["Name"]) for name in needed(package.requires or [])]
    return sorted(found.values(), key=lambda row: row[0].lower())


def table() -> str:
    """Return the table's rows as Markdown."""
    return "".join(f"| {' | '.join(row)} |\n" for row in rows())


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = make_parser("bench.licences", __doc__)
    parser.add_argument("--markdown", type=Path, help="document whose table to write anew")
    options = parser.parse_args(argv)
    if options.markdown is None:
        print(table(), end="")
        return
    text, count = TABLE.subn(lambda _: table(), options.markdown.read_text())
    if count != 1:
        parser.error(f"--markdown must have the table's heading once; got {options.markdown}")
    options.markdown.write_text(text)


if __name__ == "__main__":
    main()
