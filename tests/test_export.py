# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from pipa_fast import export
from pipa_fast.data.labels import CLASSES
from pipa_fast.models import ModelConfig, build_network
from pipa_fast.models.network import Outputs
from pipa_fast.training import checkpoint
from pipa_fast.training.config import Config

NETWORKS = [
    pytest.param("streets_s", "light", 16, id="streets_s"),
    pytest.param("mit_b0", "daformer", 32, id="mit_b0", marks=pytest.mark.slow),
]


class Cells(nn.Module):
    """One convolution at stride 4: what there is to export takes a second."""

    stride = 4
    detail_size = None

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 19, 8, stride=8)
        self.encoder.strides = (4, 8)

    def forward(self, images):
        return Outputs(self.encoder(images), None, None)


class SizeBound(Cells):
    """Does something else for each size of image, as sliding windows do."""

    def forward(self, images):
        rows = [images[:, :, top : top + 8] for top in range(0, images.shape[2], 8)]
        return super().forward(torch.cat(rows, dim=2))


def made(encoder: str, head: str) -> nn.Module:
    config = ModelConfig(encoder=encoder, head=head, projections=False)
    network = build_network(config).eval()
    for module in network.modules():  # statistics that folding them wrongly would show
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    return network


def command(monkeypatch, network: nn.Module, *words: str) -> int:
    config = Config(recipe="cells")
    monkeypatch.setattr(checkpoint, "find_weights", lambda *_: None)
    monkeypatch.setattr(checkpoint, "load_run", lambda *_: (network.eval(), config))
    return export.main(["--run", "runs/r", *words])


def refuse(monkeypatch, capsys, network: nn.Module, *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, network, *words)
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("encoder", "head", "multiple"), NETWORKS)
def test_pt2_is_the_network_at_any_batch_and_size(
    tmp_path, monkeypatch, capsys, encoder, head, multiple
):
    network, path = made(encoder, head), tmp_path / "new" / "a.pt2"
    assert command(monkeypatch, network, "--out", str(path)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"multiples of {multiple} pixels" in said and "differs by" in said
    assert [p.name for p in path.parent.iterdir()] == ["a.pt2"]
    facts = {"pipa_fast.json": ""}
    loaded = torch.export.load(path, extra_files=facts).module()
    assert json.loads(facts["pipa_fast.json"])["classes"] == ", ".join(CLASSES)
    for batch, rows, columns in ((1, 2, 2), (3, 3, 5)):
        images = torch.rand(batch, 3, multiple * rows, multiple * columns)
        with torch.no_grad():
            coarse = network(images).logits
            size = tuple(images.shape[2:])
            expected = nn.functional.interpolate(coarse, size, mode="bilinear")
            torch.testing.assert_close(loaded(images), expected)


@pytest.mark.parametrize(("encoder", "head", "multiple"), NETWORKS)
def test_onnx_is_the_network_at_any_batch_and_size(
    tmp_path, monkeypatch, capsys, encoder, head, multiple
):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    network, path = made(encoder, head), tmp_path / "a.onnx"
    assert command(monkeypatch, network, "--out", str(path)) == 0
    assert "differs by" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]  # weights inside
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["multiple"] == str(multiple) and metadata["input"] == "RGB in [0, 1]"
    images = torch.rand(3, 3, multiple * 3, multiple * 5)
    with torch.no_grad():
        expected = export.Segmenter(network)(images)
    (got,) = session.run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), expected, atol=1e-4, rtol=1e-4)


def test_a_network_bound_to_a_size_needs_one(tmp_path, monkeypatch, capsys):
    path = tmp_path / "a.pt2"
    assert "give --size H W" in refuse(monkeypatch, capsys, SizeBound(), "--out", str(path))
    assert not list(tmp_path.iterdir())
    assert command(monkeypatch, SizeBound(), "--out", str(path), "--size", "24", "40") == 0
    assert "images of 24 x 40 in any number" in " ".join(capsys.readouterr().out.split())
    loaded = torch.export.load(path).module()
    assert loaded(torch.rand(5, 3, 24, 40)).shape == (5, 19, 24, 40)


@pytest.mark.parametrize("kind", ["hrda", "swin"])
def test_windows_that_follow_the_images_size_are_never_traced_for_all(
    tmp_path, monkeypatch, capsys, kind
):
    """Of HRDA's, torch would take the example's; over a Swin's it sits for many minutes."""
    network, path = Cells(), tmp_path / "a.pt2"
    if kind == "hrda":
        network.detail_size = (512, 512)
    else:
        network.encoder.windowed = True
    message = refuse(monkeypatch, capsys, network, "--out", str(path))
    assert "other windows for every image size; give --size H W" in message
    assert command(monkeypatch, network, "--out", str(path), "--size", "24", "40") == 0


def test_a_file_that_fails_on_another_shape_gets_no_name(tmp_path, monkeypatch, capsys):
    class Small(Cells):
        """Sees the rows beyond the 32 that it is traced with as something else."""

        def forward(self, images):
            return super().forward(images * (2 if images.shape[2] > 32 else 1))

    message = refuse(monkeypatch, capsys, Small(), "--out", str(tmp_path / "a.pt2"))
    assert "cannot see images [3, 3, 40, 16]; --size may help" in message
    assert not list(tmp_path.iterdir())


def test_a_network_bound_to_its_batch_is_refused(tmp_path, monkeypatch, capsys):
    class Pairs(Cells):
        def forward(self, images):
            first, second = images.unbind(0)
            return super().forward(torch.stack((second, first)))

    words = ("--out", str(tmp_path / "a.pt2"), "--size", "24", "40")
    assert "no graph for every batch" in refuse(monkeypatch, capsys, Pairs(), *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--out", "a.pth"), "--out must end with .onnx or .pt2; got 'a.pth'"),
        (("--out", "a.pt2", "--size", "24", "36"), "must be positive multiples of 8; got (24, 36)"),
        (("--out", "a.pt2", "--size", "0", "8"), "must be positive multiples of 8"),
    ],
)
def test_bad_options_are_named(monkeypatch, capsys, words, message):
    assert message in refuse(monkeypatch, capsys, Cells(), *words)
    assert not Path("a.pt2").exists()


@pytest.mark.parametrize("fault", ["values", "shape", "nan"])
def test_a_file_that_is_not_the_network_gets_no_name(tmp_path, monkeypatch, capsys, fault):
    def faulty(path):
        right = torch.export.load(path).module()
        wrong = {
            "values": lambda x: right(x) * 1.01,
            "shape": lambda x: right(x)[..., 1:],
            "nan": lambda x: right(x) * float("nan"),
        }
        return wrong[fault]

    monkeypatch.setattr(export, "load", faulty)
    path = tmp_path / "a.pt2"
    path.write_bytes(b"the one before")
    message = refuse(monkeypatch, capsys, Cells(), "--out", str(path))
    assert "more than the tolerance 0.001; a.pt2 was not written" in message
    assert path.read_bytes() == b"the one before" and len(list(tmp_path.iterdir())) == 1
    if fault == "values":
        words = ("--out", str(path), "--tolerance", "0.1")
        assert command(monkeypatch, Cells(), *words) == 0
        assert path.read_bytes() != b"the one before"


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_network_that_torch_cannot_write_is_refused(tmp_path, monkeypatch, capsys, suffix):
    """A Swin as ONNX, a DINOv3 as .pt2: torch's own writers and readers give up on their graphs."""
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")

    def give_up(*_, **__):
        raise torch.onnx.OnnxExporterError("step 2/3") from TypeError("a rule of its own")

    monkeypatch.setattr(torch.onnx, "export", give_up)
    monkeypatch.setattr(torch.export, "load", give_up)
    message = refuse(monkeypatch, capsys, Cells(), "--out", str(tmp_path / f"a{suffix}"))
    assert "torch cannot" in message and not list(tmp_path.iterdir())
    assert suffix == ".pt2" or "a rule of its own" in message


def test_missing_libraries_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = refuse(monkeypatch, capsys, Cells(), "--out", str(tmp_path / "a.onnx"))
    assert "ONNX needs onnx and onnxscript: pip install 'pipa_fast[export]'" in message


def test_what_could_not_be_checked_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "save", lambda program, path, facts: path.write_bytes(b"onnx"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert command(monkeypatch, Cells(), "--out", str(tmp_path / "a.onnx")) == 0
    assert "not checked: pip install onnxruntime" in " ".join(capsys.readouterr().out.split())
