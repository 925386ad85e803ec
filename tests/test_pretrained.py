# SPDX-License-Identifier: Apache-2.0
"""Networks as folders: written, loaded, pushed to and pulled from a folder in the hub's place."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError

import pipa_fast
from pipa_fast import cli, pretrained
from pipa_fast.training import checkpoint
from pipa_fast.training.config import read_settings
from tests.training.test_trainer import trainer_for

FILES = {"README.md", "config.yaml", "model.safetensors"}


@pytest.fixture
def run(tmp_path, few_scenes):
    """A finished run of a network with projection heads and a teacher."""
    trainer = trainer_for(tmp_path / "runs", iterations=1)
    trainer.run()
    return trainer.run_dir


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder in the hub's place: OWNER/NAME below it are repositories."""
    root = tmp_path / "hub"

    class Api:
        def create_repo(self, name, *, private, exist_ok):
            if name == "no/network":
                raise HTTPError("Connection refused")
            if name.count("/") != 1:
                raise HFValidationError("Repo id must be OWNER/NAME")
            (root / name).mkdir(parents=True, exist_ok=exist_ok)
            (root / name / ".private").write_text(str(private))

        def upload_folder(self, *, repo_id, folder_path, allow_patterns, commit_message):
            assert pipa_fast.__version__ in commit_message
            for file in Path(folder_path).iterdir():
                if file.name in allow_patterns:
                    shutil.copy(file, root / repo_id)
            return SimpleNamespace(commit_url=f"hub:{repo_id}/1")

    def snapshot_download(name, *, revision, allow_patterns):
        if not (root / name).is_dir() or revision not in (None, "main"):
            raise LocalEntryNotFoundError("no such repository\nand more lines")
        return str(root / name)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return root


def same(network, run):
    expected = checkpoint.load_run(run)[0]
    images = torch.rand(1, 3, 32, 64)
    assert not network.training
    assert torch.equal(network(images).logits, expected(images).logits)


def test_a_folder_is_loaded_as_it_was_trained(run, tmp_path):
    folder = pretrained.save_pretrained(run, tmp_path / "mine")
    assert {p.name for p in folder.iterdir()} == FILES
    same(pipa_fast.from_pretrained(folder), run)
    same(pipa_fast.from_pretrained(str(run)), run)


def test_weights_that_were_copied_in_part_replace_none(run, tmp_path, monkeypatch):
    folder = pretrained.save_pretrained(run, tmp_path / "mine")
    before = (folder / "model.safetensors").read_bytes()

    def full(source, target):
        Path(target).write_bytes(Path(source).read_bytes()[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pretrained.shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        pretrained.save_pretrained(run, folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert {p.name for p in folder.iterdir()} == FILES


def test_the_card_says_what_the_run_knows_and_its_code_runs(run, tmp_path):
    text = (pretrained.save_pretrained(run, tmp_path / "mine") / "README.md").read_text()
    assert "$" not in text
    assert yaml.safe_load(text.split("---")[1])["pipeline_tag"] == "image-segmentation"
    for said in ("# mine", "`streets_pipa`", "`streets_s`", "1 steps", "| road | "):
        assert said in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    code = code.replace('"mine"', repr(str(tmp_path / "mine"))).replace("512, 1024", "32, 64")
    found = {}
    exec(code, found)  # noqa: S102
    assert found["labels"].ndim == 3


def test_settings_that_go_up_hold_no_places_of_this_machine(run, tmp_path):
    config = read_settings(run / "config.yaml")
    config.run.baseline, config.run.dir = "/home/me_at_home/runs/source", str(tmp_path)
    checkpoint.write_settings(run, config)
    folder = pretrained.save_pretrained(run, tmp_path / "mine")
    for file in ("config.yaml", "README.md"):
        text = (folder / file).read_text()
        assert "me_at_home" not in text and str(tmp_path) not in text
    before = (run / "config.yaml").read_text()
    with pytest.raises(ValueError, match="folder must be another than the run's own"):
        pretrained.save_pretrained(run, run)  # whose settings a push would carry up as they are
    assert (run / "config.yaml").read_text() == before and not (run / "README.md").exists()
    config.data.source, config.data.source_root = "gta5", "/home/me_at_home/gta5"
    config.model.encoder, config.model.weights = "mit_b5", "/home/me_at_home/mit_b5.pth"
    clean = pretrained._without_places(config)
    assert (clean.data.source_root, clean.model.weights) == ("data/gta5", "mit_b5.pth")


def test_pushed_and_pulled(run, tmp_path, hub, capsys):
    out = tmp_path / "mine"
    words = ["export", "--run", str(run), "--out", str(out), "--push", "me/streets"]
    (tmp_path / "mine").mkdir()
    (out / "secrets.txt").write_text("stays here")
    assert cli.main(words) == 0
    assert "pushed: hub:me/streets/1" in capsys.readouterr().out
    assert {p.name for p in (hub / "me/streets").iterdir()} == FILES | {".private"}
    assert (hub / "me/streets/.private").read_text() == "True"
    assert "# me/streets" in (hub / "me/streets/README.md").read_text()
    same(pipa_fast.from_pretrained("me/streets", revision="main"), run)


def test_what_is_not_there_is_said(run, tmp_path, hub):
    for name, said in (
        ("nowhere", "name must be a folder with model.safetensors and config.yaml, or OWNER/NAME"),
        ("me/nothing", "the hub says: no such repository"),
        (str(tmp_path), "run must be a folder with config.yaml"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            pipa_fast.from_pretrained(name)
    with pytest.raises(ValueError, match="revision must be None for a folder"):
        pipa_fast.from_pretrained(run, revision="v1")
    with pytest.raises(ValueError, match="folder must be one with model.safetensors"):
        pretrained.push(tmp_path, "me/it")
    folder = pretrained.save_pretrained(run, tmp_path / "mine")
    with pytest.raises(ValueError, match="'x' cannot be pushed: Repo id must be OWNER/NAME. `hf a"):
        pretrained.push(folder, "x")
    with pytest.raises(ValueError, match="'no/network' cannot be pushed: Connection refused"):
        pretrained.push(folder, "no/network")


def test_options_that_do_not_fit_a_folder_are_refused(run, tmp_path, capsys):
    for words, said in (
        (["--out", "x.onnx", "--push", "me/it"], "--push takes a folder as --out"),
        (["--out", str(tmp_path / "x"), "--size", "32", "64"], "--size is for .onnx and .pt2"),
        (["--out", str(tmp_path / "x"), "--tolerance", "1"], "--tolerance is for .onnx and .pt2"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["export", "--run", str(run), *words])
        assert said in capsys.readouterr().err


def test_the_package_has_no_other_late_names():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = pipa_fast.nothing
