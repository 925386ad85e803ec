# SPDX-License-Identifier: Apache-2.0
import json
import os
import shutil
import socket
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import save_file
from torch import nn

from pipa_fast import evaluate
from pipa_fast.data import loader
from pipa_fast.data.sample import Sample
from pipa_fast.evaluation import inference
from pipa_fast.training import checkpoint
from pipa_fast.training.config import Config, EvaluationConfig
from tests.training.test_trainer import trainer_for


class Constant(nn.Module):
    """Answers class `favourite` everywhere."""

    stride = 2

    def __init__(self, favourite: int = 0) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(3, 19, 1)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)
        with torch.no_grad():
            self.classifier.bias[favourite] = 1

    def forward(self, images):
        return self.classifier(images[:, :, ::2, ::2])

    def export(self):
        return self


class Halves:
    """Images whose upper half is road and lower half car."""

    eval_classes = (0, 13)

    def __len__(self):
        return 3

    def __getitem__(self, index):
        label = np.zeros((8, 16), np.uint8)
        label[4:] = 13
        return Sample(np.full((8, 16, 3), 40 * index, np.uint8), label, f"scene_{index}")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder whose network says "road", and everything that would load it."""
    folder = tmp_path / "runs" / "streets_pipa"
    folder.mkdir(parents=True)
    results = {"miou": 25.0, "iou": {"road": 50.0}, "recipe": "r", "iteration": 5, "seed": 1}
    (folder / "results.json").write_text(json.dumps(results))
    config = Config(recipe="streets_pipa", seed=1)
    asked = []

    def build_dataset(name, split, root=None, **options):
        asked.append((name, split))
        return Halves()

    checkpoint.write_settings(folder, config)
    save_file(Constant(0).state_dict(), folder / "model.safetensors")
    for module in (evaluate, loader):
        monkeypatch.setattr(module, "build_dataset", build_dataset)
    monkeypatch.setattr(checkpoint, "build_network", lambda config: Constant(5))
    return SimpleNamespace(folder=folder, asked=asked)


def refuse(run, capsys, *words):
    """What the command says of options that it must not take."""
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["--run", str(run.folder), *words])
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_scores_are_printed_and_written(run, capsys):
    assert evaluate.main(["--run", str(run.folder), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "mIoU" in printed and "road" in printed and "50.0" in printed
    record = json.loads((run.folder / "evaluation_streets_real_val.json").read_text())
    assert record["miou"] == 25.0 and record["iou"] == {"road": 50.0, "car": 0.0}
    assert run.asked == [("streets_real", "val")]


def test_another_dataset_split_and_output(run, tmp_path):
    output = tmp_path / "new" / "score.json"
    words = ["--run", str(run.folder), "--dataset", "streets_synthetic", "--split", "train"]
    assert evaluate.main([*words, "--output", str(output), "--crop", "4", "8"]) == 0
    assert run.asked == [("streets_synthetic", "train")]
    assert json.loads(output.read_text())["dataset"] == "streets_synthetic"


def _evaluate_on_rank(rank, run, store):
    seen = []

    class Watched(Halves):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    evaluate.build_dataset = lambda *_, **__: Watched()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store)}
    torch.set_num_threads(1)
    words = ["--run", str(run), "--device", "cpu", "--output", str(run / "two" / f"{rank}.json")]
    assert evaluate.main(words) == 0
    (run / f"seen{rank}").write_text(str(seen))


def test_ranks_share_the_images_and_the_first_one_writes(run):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        store = free.getsockname()[1]
    mp.start_processes(_evaluate_on_rank, (run.folder, store), nprocs=2, start_method="fork")
    assert [(run.folder / f"seen{rank}").read_text() for rank in range(2)] == ["[0, 2]", "[1]"]
    assert [path.name for path in (run.folder / "two").iterdir()] == ["0.json"]
    record = json.loads((run.folder / "two" / "0.json").read_text())
    assert record["iou"] == {"road": 50.0, "car": 0.0}


class AllClasses(Halves):
    """Road in the upper half; below it, all 19 classes side by side, 8 pixels of each."""

    def __getitem__(self, index):
        label = np.zeros((8, 38), np.uint8)
        label[4:] = np.arange(38) // 2
        return Sample(np.zeros((8, 38, 3), np.uint8), label, "")


def score(run, *words: str) -> dict:
    assert evaluate.main(["--run", str(run.folder), *words]) == 0
    return json.loads((run.folder / "evaluation_streets_real_val.json").read_text())


@pytest.mark.parametrize("number", [19, 16, 13])
def test_class_sets_and_other_ways_of_counting(run, capsys, monkeypatch, number):
    """The network says road: 160 of 304 pixels are, and 8 of each other class."""
    monkeypatch.setattr(evaluate, "build_dataset", lambda *_, **__: AllClasses())
    record = score(run, "--classes", str(number))
    mean = round(100 * 160 / 304 / number, 4)
    assert (len(record["iou"]), record["miou"], record["classes"]) == (number, mean, str(number))
    scored = 160 + 8 * (number - 1)
    ways = {"mean": mean, "others_ignored": round(100 * 160 / scored / number, 4)}
    if number == 16:
        ways["rescaled"] = mean  # as the network knows nothing of the other three
    assert record["conventions"] == ways
    printed = capsys.readouterr().out
    assert ("pixels left out of the truth" in printed) == (number != 19)
    assert "x 19/16" not in printed


def test_scores_that_rescaling_changes_are_printed(run, capsys, monkeypatch):
    """The network says terrain, which SYNTHIA lacks."""
    _, config = checkpoint.load_run(run.folder)
    monkeypatch.setattr(evaluate, "build_dataset", lambda *_, **__: AllClasses())
    monkeypatch.setattr(checkpoint, "load_run", lambda *_: (Constant(9).eval(), config))
    record = score(run, "--classes", "16")
    assert record["conventions"]["mean"] == 0
    assert record["conventions"]["rescaled"] == round(100 * 8 / 304 / 16, 4)
    assert "mIoU 0.2: mIoU over 19 classes x 19/16" in capsys.readouterr().out


def test_flipping_and_the_batch_of_windows_are_passed_on(run, monkeypatch):
    asked = []

    def evaluating(*_, **options):
        asked.append(options)
        return inference.evaluate(Constant(0), Halves())

    monkeypatch.setattr(evaluate, "evaluate", evaluating)
    words = ["--run", str(run.folder), "--crop", "4", "8", "--window-batch", "7", "--flip"]
    assert evaluate.main(words) == 0
    assert asked[0]["flip"] and asked[0]["window"].batch == 7
    record = json.loads((run.folder / "evaluation_streets_real_val.json").read_text())
    seen = {name: record[name] for name in ("image_size", "crop", "stride", "flip")}
    assert seen == {"image_size": None, "crop": [4, 8], "stride": [2, 5], "flip": True}


@pytest.fixture
def how(run, monkeypatch):
    """Evaluates a run that has windows of its own; returns how, what was written and printed."""
    _, config = checkpoint.load_run(run.folder)
    config.evaluation = EvaluationConfig(
        size=(8, 8), crop=(4, 8), stride=(1, 3), window_batch=2, batch_size=3, flip=True
    )
    monkeypatch.setattr(checkpoint, "load_run", lambda *_: (Constant(0).eval(), config))
    asked = {}

    def evaluating(*_, **options):
        asked.update(options)
        return inference.evaluate(Constant(0), Halves())

    monkeypatch.setattr(evaluate, "evaluate", evaluating)

    def scored(capsys, *words):
        record = score(run, "--device", "cpu", *words)
        return asked, record, capsys.readouterr().out

    scored.config = config
    return scored


@pytest.mark.parametrize(
    ("words", "changed", "printed"),
    [
        ([], {}, "images fitted into 8 x 8, in windows of 4 x 8, 1 x 3 apart, mirrored too, fp32"),
        (["--window-batch", "1"], {"batch": 1}, "of 4 x 8, 1 x 3 apart, mirrored too"),
        (["--crop", "5", "6"], {"crop": (5, 6)}, "of 5 x 6, 1 x 3 apart, mirrored too"),
        (["--stride", "4", "4"], {"stride": (4, 4)}, "of 4 x 8, 4 x 4 apart, mirrored too"),
        (["--no-flip"], {"flip": False}, "1 x 3 apart, fp32"),
        (["--batch-size", "9"], {"batch_size": 9}, "1 x 3 apart, mirrored too, fp32"),
    ],
)
def test_an_option_changes_its_own_field_of_how_the_run_sees_images(
    how, capsys, words, changed, printed
):
    how.config.precision = "fp32"
    asked, record, out = how(capsys, *words)
    window = asked["window"]
    seen = {"crop": window.crop, "stride": window.stride, "batch": window.batch}
    seen |= {"flip": asked["flip"], "batch_size": asked["batch_size"]}
    own = {"crop": (4, 8), "stride": (1, 3), "batch": 2, "flip": True, "batch_size": 3}
    assert seen == own | changed and asked["image_size"] == (8, 8)
    assert (tuple(record["crop"]), record["flip"]) == (seen["crop"], seen["flip"])
    assert printed in out


def test_a_crop_below_the_runs_own_stride_says_whose_that_is(run, how, capsys):
    message = refuse(run, capsys, "--crop", "4", "2")
    assert "--stride must be" in message and "got (1, 3), the run's own: give --stride" in message


@pytest.mark.parametrize(
    ("own", "words", "name"),
    [
        ("bf16", [], "bf16"),
        ("auto", [], "bf16"),  # of a CPU that computes in it
        ("fp32", [], "fp32"),
        ("bf16", ["--precision", "fp32"], "fp32"),
        ("fp32", ["--precision", "auto"], "bf16"),
        ("fp32", ["--precision", "fp16"], "fp16"),
    ],
)
def test_a_run_is_scored_in_the_precision_that_it_was_trained_in(
    how, capsys, monkeypatch, own, words, name
):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    how.config.precision = own
    asked, record, out = how(capsys, *words)
    dtypes = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    assert asked["dtype"] is dtypes[name] and record["precision"] == name
    assert f"mirrored too, {name}" in out


def test_the_last_score_of_training_is_repeated(tmp_path, few_scenes, monkeypatch):
    """In bfloat16, where pixels fall to other classes than in float32."""
    monkeypatch.setattr(evaluate, "build_dataset", loader.build_dataset)
    trainer = trainer_for(tmp_path, "streets_source", precision="bf16")
    trainer.run()
    results = json.loads((trainer.run_dir / "results.json").read_text())
    words = ["--run", str(trainer.run_dir), "--device", "cpu"]
    assert evaluate.main(words) == 0
    record = json.loads((trainer.run_dir / "evaluation_streets_real_val.json").read_text())
    assert (record["miou"], record["iou"]) == (results["miou"], results["iou"])
    assert evaluate.main([*words, "--precision", "fp32"]) == 0
    other = json.loads((trainer.run_dir / "evaluation_streets_real_val.json").read_text())
    assert other["iou"] != results["iou"] and other["precision"] == "fp32"


@pytest.mark.parametrize("kind", ["checkpoint", "safetensors"])
def test_other_weights_are_scored(run, tmp_path, kind):
    state = Constant(13).state_dict() | {"projections.pixel.weight": torch.zeros(3)}
    if kind == "checkpoint":
        path = checkpoint.save(tmp_path, {"iteration": 7, "student": state}, 7)
    else:
        path = tmp_path / "model.safetensors"
        save_file(state, path)
    assert evaluate.main(["--run", str(run.folder), "--checkpoint", str(path)]) == 0
    record = json.loads((run.folder / "evaluation_streets_real_val.json").read_text())
    assert record["iou"] == {"road": 0.0, "car": 50.0} and record["checkpoint"] == str(path)


def test_weights_that_lack_parameters_are_refused(run, tmp_path, capsys):
    path = tmp_path / "model.safetensors"
    save_file({"other": torch.zeros(3)}, path)
    message = refuse(run, capsys, "--checkpoint", str(path))
    assert "model.safetensors does not fit" in message and "classifier.bias" in message


def test_weights_of_another_shape_are_refused(run, tmp_path, capsys):
    state = Constant().state_dict() | {"classifier.bias": torch.zeros(7)}
    path = checkpoint.save(tmp_path, {"iteration": 7, "student": state}, 7)
    message = refuse(run, capsys, "--checkpoint", str(path))
    assert f"{path.name} does not fit" in message and "size mismatch" in message


def test_damaged_weights_are_named(run, tmp_path, capsys):
    path = tmp_path / "model.safetensors"
    save_file(Constant().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-5])
    assert "model.safetensors is damaged" in refuse(run, capsys, "--checkpoint", str(path))


def test_files_that_hold_no_weights_are_refused_by_their_own_name(run, tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text("recipe: x")
    message = refuse(run, capsys, "--checkpoint", str(path))
    assert "config.yaml" in message and "config.json" not in message


def test_a_teacher_that_does_not_fit_is_named(run, capsys):
    teacher = {f"network.{k}": v for k, v in Constant(13).state_dict().items()}
    teacher["network.classifier.bias"] = torch.zeros(7)
    checkpoint.save(run.folder, {"teacher": teacher}, 5)
    message = refuse(run, capsys, "--report")
    assert "checkpoints does not fit" in message and "classifier.bias" in message


def test_the_report_is_made_anew_with_the_teacher(run):
    teacher = {f"network.{k}": v for k, v in Constant(13).state_dict().items()}
    other = shutil.copytree(run.folder, run.folder.parent / "streets_source")
    checkpoint.save(run.folder, {"teacher": teacher}, 5)
    words = ["--run", str(run.folder), "--report"]
    assert evaluate.main([*words, "--baseline", str(other)]) == 0
    html = (run.folder / "report.html").read_text()
    assert "source-only" in html and "teacher&#x27;s confidence" in html
    loaded = evaluate.load_teacher(Constant(0), run.folder)
    assert loaded is not None and loaded.classifier.bias[13] == 1
    assert evaluate.main(words) == 0
    assert "before training" in (run.folder / "report.html").read_text()


def test_the_report_sees_images_as_the_run_was_evaluated(run, monkeypatch):
    _, config = checkpoint.load_run(run.folder)
    config.evaluation = EvaluationConfig(size=(4, 8), crop=(4, 4), flip=True)
    checkpoint.write_settings(run.folder, config)
    asked = {}
    monkeypatch.setattr(evaluate, "write_report", lambda folder, **how: asked.update(how) or folder)
    assert evaluate.main(["--run", str(run.folder), "--report"]) == 0
    assert asked["image_size"] == (4, 8) and asked["window"].crop == (4, 4) and asked["flip"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--baseline", "runs/x"], "--baseline is for the report"),
        (["--report", "--dataset", "x"], "leave out --dataset"),
        (["--report", "--flip"], "leave out --flip"),
        (["--report", "--classes", "19"], "leave out --classes"),
        (["--report", "--root", "data"], "leave out --root"),
        (["--report", "--split", "train"], "leave out --split"),
        (["--report", "--output", "scores.json"], "leave out --output"),
        (["--report", "--batch-size", "1"], "leave out --batch-size"),
        (["--classes", "14"], "invalid choice: '14'"),
        (["--stride", "4", "4"], "--stride needs --crop, as the run sees images whole"),
        (["--window-batch", "3"], "--window-batch needs --crop, as the run sees images whole"),
        (["--crop", "4", "4", "--window-batch", "0"], "--window-batch must be a positive count"),
        (["--crop", "4", "4", "--stride", "8", "4"], "--stride must be"),
        (["--report", "--precision", "fp32"], "leave out --precision"),
        (["--precision", "fp8"], "invalid choice: 'fp8'"),
        (["--device", "abacus"], "--device must be one that works here"),
        (["--checkpoint", "nowhere.pt"], "checkpoint must be a file of weights"),
        (["--batch-size", "0"], "--batch-size must be a positive count"),
    ],
)
def test_bad_options_end_with_2_and_say_why(run, capsys, words, message):
    assert message in refuse(run, capsys, *words)


def test_a_folder_that_is_no_run_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["--run", str(tmp_path / "nowhere")])
    assert "nowhere" in capsys.readouterr().err
