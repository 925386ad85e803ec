# SPDX-License-Identifier: Apache-2.0
"""Which files of a dataset were found sound, so that an interrupted pass over them goes on."""

import contextlib
import json
from pathlib import Path
from typing import IO, Any

import numpy as np

from pipa_fast.data.folder import Pair
from pipa_fast.data.statistics import counts_of, record_of


class Journal:
    """A file with a line for each pair that was read whole, and the pixels of its classes.

    A pair is known by the sizes and times of its files: one that was replaced since is unknown.

    Args:
        path: of the file, which need not be there; one of other `terms` is begun anew. None keeps
            none.
        terms: what else the findings depend on, for JSON.
    """

    def __init__(self, path: Path | None, terms: list[Any]) -> None:
        self.path, self.head = path, json.dumps(terms)
        self.known: dict[str, np.ndarray | None] = {}
        self.file: IO[str] | None = None
        lines = path.read_text().splitlines() if path is not None and path.is_file() else []
        for line in lines[1:] if lines[:1] == [self.head] else ():
            with contextlib.suppress(ValueError):  # a line that was being written
                key, counts = json.loads(line)
                self.known[key] = None if counts is None else counts_of(counts)

    def __enter__(self) -> "Journal":
        if self.path is not None:
            # A folder that can't be written to may need nothing written; what does, fails itself.
            with contextlib.suppress(OSError):
                self.file = self.path.open("a" if self.known else "w")
        self._write("" if self.known else self.head)  # which ends a line that was being written
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()

    def add(self, pair: Pair, counts: np.ndarray | None) -> None:
        """Note a sound pair: its pixels by train id [255], None without a label."""
        self._write(json.dumps([_key(pair), None if counts is None else record_of(counts)]))

    def _write(self, line: str) -> None:
        if self.file is not None:
            self.file.write(f"{line}\n")
            self.file.flush()

    def split(self, pairs: list[Pair]) -> tuple[dict[Pair, np.ndarray | None], list[Pair]]:
        """Return what is known of pairs, and those of which nothing is."""
        keys = {pair: _key(pair) for pair in pairs} if self.known else {}
        seen = {pair: self.known[key] for pair, key in keys.items() if key in self.known}
        return seen, [pair for pair in pairs if pair not in seen]

    def end(self) -> None:
        """Remove the file: the pass is over, and the next one reads everything."""
        if self.path is not None and self.file is not None:
            self.path.unlink(missing_ok=True)


def _key(pair: Pair) -> str:
    files = (pair.image, pair.label, pair.converted)
    found = [(path.name, path.stat()) for path in files if path is not None and path.is_file()]
    return json.dumps([str(pair.image), *((n, s.st_size, s.st_mtime_ns) for n, s in found)])
