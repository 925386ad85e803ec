# SPDX-License-Identifier: Apache-2.0
"""Files of results: one JSON object a line. bench/results/README.md tells the columns."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def load(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the rows of files that `--json` or `--save` wrote."""
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def results_folder(where: dict[str, Any], *, gpu: bool) -> Path:
    """Return where `--save` puts a machine's rows. Processors of one name may differ in flags."""
    flags = [] if gpu else where["cpu_flags"].split()[-1:]
    name = " ".join([where["device"], *flags])
    return RESULTS / re.sub(r"[^\w.-]+", "_", name).strip("_")


def keep(rows: Sequence[dict[str, Any]], json_path: Path | None, saved: Path | None) -> None:
    """Write rows to what `--json` names and to where `--save` puts them, and say so."""
    for path in (json_path, saved):
        if path is not None:
            write(path, rows)
            print(f"-> {path}")
