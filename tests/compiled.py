# SPDX-License-Identifier: Apache-2.0
"""C++ that tests load, compiled once for what it is made of."""

import hashlib
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path


def library(folder: Path, source: Path, content: bytes, words: Iterable[str]) -> Path:
    """Return the shared library of `source` in `folder`, compiled where none is of this content.

    `words` follow the source: flags, and what is linked. Processes may ask for it at a time.
    """
    made = folder / f"{source.stem}.{hashlib.sha256(content).hexdigest()[:16]}.so"
    if not made.exists():
        partial = made.with_suffix(f".{os.getpid()}.so")
        compiler = os.environ.get("CXX", "c++").split()
        command = [*compiler, "-O1", "-shared", "-fPIC", str(source), *words, "-o", str(partial)]
        subprocess.run(command, check=True)
        os.replace(partial, made)
    return made
