# SPDX-License-Identifier: Apache-2.0
import logging
import re
from unittest import mock

import pytest
import torch
import yaml
from PIL import Image

from pipa_fast import evaluate, predict
from pipa_fast.models import ModelConfig, build_network
from pipa_fast.training import checkpoint
from pipa_fast.training.config import load


def save_some(folder, *iterations, **kept):
    for iteration in iterations:
        state = {"iteration": iteration, "x": torch.full((3,), float(iteration))}
        checkpoint.save(folder, state, iteration, **kept)


def test_newest_comes_back_and_old_ones_go(tmp_path):
    save_some(tmp_path, 1, 2, 10)
    assert [p.name for p in checkpoint.found(tmp_path)] == ["step-0000010.pt", "step-0000002.pt"]
    state = checkpoint.load_newest(tmp_path)
    assert state is not None and state["iteration"] == 10
    assert torch.equal(state["x"], torch.full((3,), 10.0))


def test_those_of_a_multiple_stay(tmp_path):
    save_some(tmp_path, 5, 10, 15, 20, 25, 27, keep=1, keep_every=10)
    assert [int(p.stem[5:]) for p in checkpoint.found(tmp_path)] == [27, 20, 10]
    manifests = (tmp_path / "checkpoints").glob("*.json")
    assert len(list(manifests)) == 3


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoint.load_newest(tmp_path) is None


def test_one_flipped_byte_is_seen_and_the_one_before_serves(tmp_path, caplog):
    save_some(tmp_path, 1, 2)
    newest = checkpoint.found(tmp_path)[0]
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        state = checkpoint.load_newest(tmp_path)
    assert state is not None and state["iteration"] == 1
    assert "damaged" in caplog.text


def test_all_damaged_is_an_error(tmp_path):
    save_some(tmp_path, 1)
    checkpoint.found(tmp_path)[0].write_bytes(b"")
    with pytest.raises(ValueError, match="no checkpoint of .* is sound"):
        checkpoint.load_newest(tmp_path)


def test_without_a_manifest_it_was_interrupted(tmp_path):
    save_some(tmp_path, 1, 2)
    checkpoint.found(tmp_path)[0].with_suffix(".json").unlink()
    state = checkpoint.load_newest(tmp_path)
    assert state is not None and state["iteration"] == 1


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    save_some(tmp_path, 1)

    def full_disk(state, file):
        file.write(b"half")
        raise RuntimeError("no space left")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(RuntimeError, match="no space"):
        save_some(tmp_path, 2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "step-0000001.json",
        "step-0000001.pt",
    ]


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("code ran",))

    path = checkpoint.save(tmp_path, {"evil": Evil()}, 1)
    with pytest.raises(ValueError, match=r"step-0000001.pt cannot be read: Weights only"):
        checkpoint.load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_broken_manifest_is_named(tmp_path, text):
    save_some(tmp_path, 1)
    path = checkpoint.found(tmp_path)[0]
    path.with_suffix(".json").write_text(text)
    with pytest.raises(ValueError, match=r"step-0000001.json is no checkpoint's manifest"):
        checkpoint.load(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match=r"must have its manifest step-0000001.json beside it"):
        checkpoint.load(path)


def test_load_run_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"config\.yaml"):
        checkpoint.load_run(tmp_path)


@pytest.fixture
def run(tmp_path):
    """The folder of a finished run of an untrained network."""
    config = load({"recipe": "r"})
    checkpoint.write_settings(tmp_path, config)
    checkpoint.export(tmp_path, build_network(config.model))
    return tmp_path


def test_a_run_comes_back(run):
    network, config = checkpoint.load_run(run)
    assert config.recipe == "r" and not network.training and len(network.projections) == 0


def test_a_run_that_was_compiled_comes_back_for_any_machine(tmp_path):
    config = load({"recipe": "r", "model": {"compile": True}})
    checkpoint.write_settings(tmp_path, config)
    checkpoint.export(tmp_path, build_network(config.model))
    network, settings = checkpoint.load_run(tmp_path)
    assert settings.model.compile and network.encoder._compiled_call_impl is None


def test_a_run_comes_back_without_the_weights_it_started_from(tmp_path):
    config = load({"recipe": "r", "model": {"encoder": "mit_b0", "head": "segformer"}})
    network = build_network(config.model)
    checkpoint.export(tmp_path, network)
    config.model.weights = str(tmp_path / "mit_b0.pth")  # which was there once
    checkpoint.write_settings(tmp_path, config)
    loaded, settings = checkpoint.load_run(tmp_path)
    assert settings.model.weights == config.model.weights
    assert torch.equal(loaded.head.conv_seg.weight, network.head.conv_seg.weight)


def edit_config(run, **model):
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["model"] |= model
    (run / "config.yaml").write_text(yaml.safe_dump(values))


def damage(run, what):
    """Spoil a finished run; return what the complaint must say."""
    if what == "another head":
        edit_config(run, head="daformer")
        return r"model.safetensors does not fit the settings of its run: .*Missing key"
    if what == "another width":
        network = build_network(ModelConfig(num_classes=7))
        checkpoint.export(run, network)
        return r"model.safetensors does not fit the settings of its run: .*size mismatch"
    if what == "another number of classes":
        edit_config(run, num_classes=10)
        return r"config.yaml: .*model.num_classes must be 19"
    if what == "cut weights":
        path = run / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-7])
        return "model.safetensors is damaged, or no safetensors"
    (run / "config.yaml").write_text("recipe: [x\n")
    return "config.yaml cannot be read as YAML"


DAMAGES = [
    "another head",
    "another width",
    "another number of classes",
    "cut weights",
    "broken settings",
]


@pytest.mark.parametrize("command", ["evaluate", "predict"])
@pytest.mark.parametrize("what", DAMAGES)
def test_commands_say_that_a_run_is_damaged(run, what, command, tmp_path, capsys):
    message = damage(run, what)
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (16, 16)).save(photos / "a.png")
    words = ["--run", str(run), "--device", "cpu"]
    with pytest.raises(SystemExit) as stop:
        if command == "evaluate":
            evaluate.main(words)
        else:
            predict.main([str(photos), *words, "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_weights_of_a_deeper_network_are_refused(run):
    network, _ = checkpoint.load_run(run)
    weights = network.state_dict() | {"encoder.stages.9.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match="Unexpected key.*stages.9"):
        checkpoint.fit(network, weights, run / "model.safetensors")


@pytest.mark.parametrize("error", [OSError("no room"), MemoryError("no room"), ValueError("no")])
def test_no_error_of_the_thread_that_writes_is_lost(tmp_path, monkeypatch, error):
    monkeypatch.setattr(checkpoint, "save", mock.Mock(side_effect=error))
    writer = checkpoint.Writer()
    writer.save(tmp_path, {}, 1, keep=2)
    with pytest.raises(type(error), match="no"):
        writer.wait()
    writer.wait()  # told once
