# SPDX-License-Identifier: Apache-2.0
"""The notebook is committed without outputs, and runs to its pictures."""

import ast
import struct
from base64 import b64decode

import nbformat
import pytest

from tests.examples.load import EXAMPLES

NOTEBOOK = EXAMPLES / "embeddings.ipynb"


def test_notebook_holds_no_outputs_and_each_cell_parses():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells
    for cell in cells:
        assert cell.outputs == [] and cell.execution_count is None
        ast.parse(cell.source)
    assert "SPDX-License-Identifier: Apache-2.0" in notebook.cells[0].source


@pytest.mark.slow
def test_notebook_runs_and_draws(monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("STEPS", "30")
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()  # raises
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert not [o for o in outputs if o.output_type == "error"]
    pictures = [o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 2
    for picture in pictures:
        width, height = struct.unpack(">II", b64decode(picture)[16:24])
        assert width > 500 and height > 200
    text = "".join(o.text for o in outputs if o.get("name") == "stdout")
    before, *after = [float(line.split("%")[0].split()[-1]) for line in text.splitlines()]
    assert len(after) == 2 and min(after) > before + 5  # percent nearest their own class
