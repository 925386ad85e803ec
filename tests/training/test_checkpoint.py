# SPDX-License-Identifier: Apache-2.0
import json
import logging

import pytest
import torch

from pipa_fast.training import checkpoint


def save_some(folder, *iterations, keep=2):
    for iteration in iterations:
        state = {"iteration": iteration, "x": torch.full((3,), float(iteration))}
        checkpoint.save(folder, state, iteration, keep=keep)


def test_newest_comes_back_and_old_ones_go(tmp_path):
    save_some(tmp_path, 1, 2, 10)
    assert [p.name for p in checkpoint.found(tmp_path)] == ["step-0000010.pt", "step-0000002.pt"]
    state = checkpoint.load_newest(tmp_path)
    assert state is not None and state["iteration"] == 10
    assert torch.equal(state["x"], torch.full((3,), 10.0))


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

    def full_disk(state, path):
        path.write_bytes(b"half")
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

    save_some(tmp_path, 1)
    path = checkpoint.found(tmp_path)[0]
    torch.save({"evil": Evil()}, path)
    manifest = {"iteration": 1, "bytes": path.stat().st_size, "sha256": checkpoint._sha256(path)}
    path.with_suffix(".json").write_text(json.dumps(manifest))
    with pytest.raises(Exception, match="[Ww]eights"):
        checkpoint.load(path)


def test_load_run_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"config\.yaml"):
        checkpoint.load_run(tmp_path)
