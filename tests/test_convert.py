# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pipa_fast import convert, evaluate, predict
from pipa_fast.training import checkpoint
from tests.data.published import make
from tests.models.published import WIDTHS, daformer_state, fill, head_shapes, mit_shapes, write

SMALL = ("--model.encoder", "mit_b0")
KEY, OURS = "decode_head.conv_seg.weight", "head.conv_seg.weight"
ROAD, CAR = 0, 13


def favouring(train_id):
    """A segmentor's state whose network says one class everywhere."""
    state = daformer_state()
    state["decode_head.conv_seg.bias"][train_id] = 1e4
    return state


@pytest.fixture(scope="module")
def states():
    """Of a student that says car and a teacher that says road."""
    return {"model.": favouring(CAR), "ema_model.": favouring(ROAD)}


@pytest.fixture(scope="module")
def release(tmp_path_factory, states):
    """A file with both branches, a frozen ImageNet network and PiPa's layers for training."""
    file = {f"{prefix}{k}": v for prefix, state in states.items() for k, v in state.items()}
    file |= {"imnet_model.backbone.norm1.weight": torch.zeros(32), "project.0.bias": torch.zeros(2)}
    return write(tmp_path_factory.mktemp("release") / "latest.pth", file)


def command(file, out, *words, recipe="gta2cs_daformer", settings=SMALL):
    return convert.main([str(file), "--recipe", recipe, "--out", str(out), *words, "--", *settings])


def refuse(capsys, *arguments, **options):
    """What the command prints and what it complains of."""
    with pytest.raises(SystemExit) as stop:
        command(*arguments, **options)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    return printed.out, " ".join(printed.err.split())


@pytest.mark.parametrize(
    ("words", "prefix", "said"),
    [((), "model.", CAR), (("--branch", "teacher"), "ema_model.", ROAD)],
)
def test_evaluate_and_predict_take_what_was_converted(
    tmp_path, release, states, capsys, words, prefix, said
):
    out, cityscapes = tmp_path / "runs" / "release", make("cityscapes", tmp_path / "cs", "val")
    settings = (*SMALL, "--data.target_root", str(cityscapes), "--evaluation.size", "[32, 64]")
    assert command(release, out, *words, settings=settings) == 0
    state, printed = states[prefix], capsys.readouterr().out
    left_out = len(state) + 2
    assert f"loaded, {left_out} for training alone left out" in printed
    assert "unmatched" not in printed and "missing" not in printed

    network, config = checkpoint.load_run(out)
    assert torch.equal(network.state_dict()[OURS], state[KEY])
    assert config.recipe == "gta2cs_daformer" and config.model.weights is None
    assert config.precision == "fp32", "as the releases compute"
    note = f"# weights: those of the {words[-1] if words else 'student'} in 'latest.pth'\n"
    assert (out / "config.yaml").read_text().startswith(note)

    assert evaluate.main(["--run", str(out), "--device", "cpu"]) == 0
    record = json.loads((out / "evaluation_cityscapes_val.json").read_text())
    # columns of road, car and void
    assert record["iou"] == {"road": 50 * (said == ROAD), "car": 50 * (said == CAR)}

    Image.new("RGB", (64, 40)).save(tmp_path / "a.png")
    painted = tmp_path / "painted"
    words = [str(tmp_path / "a.png"), "--run", str(out), "--out", str(painted), "--raw"]
    assert predict.main([*words, "--device", "cpu"]) == 0
    assert (np.asarray(Image.open(painted / "a_labels.png")) == said).all()


def test_hrdas_file_and_its_recipe(tmp_path, capsys):
    state = fill(mit_shapes(WIDTHS, (2, 2, 2, 2)), "model.backbone.")
    state |= fill(head_shapes(WIDTHS, 19), "model.decode_head.head.")
    attention = "model.decode_head.scale_attention."
    state |= fill(head_shapes(WIDTHS, 19, fusion="conv"), attention)
    file, out = write(tmp_path / "hrda.pth", state), tmp_path / "out"
    printed, message = refuse(capsys, file, out)
    assert "hrda.pth does not fit the network of --recipe gta2cs_daformer" in message
    for key in state:
        assert (f"\n  {key}\n" in printed) == key.startswith(attention), key
    assert command(file, out, recipe="gta2cs_hrda") == 0
    network, config = checkpoint.load_run(out)
    assert config.model.hrda.enabled and config.evaluation.crop == (1024, 1024)
    weight = state[f"{attention}conv_seg.weight"]
    assert torch.equal(network.state_dict()["attention.conv_seg.weight"], weight)


def test_another_recipes_network_is_refused(tmp_path, release, capsys):
    out = tmp_path / "out"
    printed, message = refuse(capsys, release, out, recipe="gta2cs_hrda")
    assert "does not fit the network of --recipe gta2cs_hrda: " in message
    assert "missing: attention." in message and "--allow-partial takes what fits" in message
    assert "\n  attention.conv_seg.weight\n" in printed and "\n  head." not in printed
    _, message = refuse(capsys, release, out, recipe="gta2cs_dafromer")
    assert "--recipe: " in message and "did you mean 'gta2cs_daformer'?" in message
    assert not out.exists()


def test_a_partial_file_is_told_in_full_and_taken_only_if_allowed(tmp_path, states, capsys):
    state = {f"model.{k}": v for k, v in states["model."].items()}
    lacking = [f"model.backbone.norm{i}.weight" for i in (1, 2, 3, 4)]
    for key in lacking:
        del state[key]
    strangers = [f"model.auxiliary.{i}" for i in range(5)]
    state |= {key: torch.zeros(2) for key in strangers}
    state["model.decode_head.embed_layers.0.proj.weight"] = torch.zeros(256, 16)
    file, out = write(tmp_path / "part.pth", state), tmp_path / "out"
    lines = [f"  {key}" for key in strangers]
    lines += [f"  encoder.model.stages.{i}.layer_norm.weight" for i in range(4)]
    lines += ["  head.embed_layers.0.proj.weight ((256, 16) in the file, (256, 32) here)"]

    printed, message = refuse(capsys, file, out)
    assert [line for line in printed.splitlines() if line.startswith("  ")] == lines
    assert "5 unmatched: " in message and "4 missing: " in message and "1 mismatched: " in message
    assert not out.exists()

    drawn = []
    for folder in (out, tmp_path / "again"):
        torch.rand(3)  # whatever was drawn before
        assert command(file, folder, "--allow-partial") == 0
        printed = capsys.readouterr().out.splitlines()
        assert [line for line in printed if line.startswith("  ")] == lines
        assert "in 'part.pth', in part" in (folder / "config.yaml").read_text().splitlines()[0]
        network, _ = checkpoint.load_run(folder)
        assert torch.equal(network.state_dict()[OURS], states["model."][KEY])
        drawn.append(network.state_dict()["head.embed_layers.0.proj.weight"])
    assert torch.equal(*drawn)


def test_a_branch_that_is_not_there(tmp_path, states, capsys):
    file = write(tmp_path / "bare.pth", states["model."])
    _, message = refuse(capsys, file, tmp_path / "out", "--branch", "teacher")
    assert "branch must be one that bare.pth holds; got 'teacher'" in message
    _, message = refuse(capsys, file, tmp_path / "out", "--branch", "pupil")
    assert "invalid choice: 'pupil'" in message
    assert not (tmp_path / "out").exists()
    assert command(file, tmp_path / "out") == 0  # a plain segmentor counts as student


def test_a_file_that_is_none(tmp_path, capsys):
    _, message = refuse(capsys, tmp_path / "no.pth", tmp_path / "out")
    assert "no.pth" in message and "must be a published checkpoint's file" in message
    (tmp_path / "text.pth").write_text("nothing")
    _, message = refuse(capsys, tmp_path / "text.pth", tmp_path / "out")
    assert "text.pth" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["config.yaml", "model.safetensors", "results.json", "checkpoints/step-0000001.pt"]
)
def test_a_folder_that_holds_a_run_stays_as_it_is(tmp_path, release, capsys, name):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weeks of work")
    _, message = refuse(capsys, release, tmp_path / "out")
    assert f"--out must be a folder without a run; {tmp_path / 'out'} holds one" in message
    assert path.read_bytes() == b"weeks of work"
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == [path]


def test_a_folder_with_the_file_itself_will_do(tmp_path, states):
    file = write(tmp_path / "latest.pth", states["model."])
    assert command(file, tmp_path) == 0
    assert file.is_file() and checkpoint.load_run(tmp_path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("--model.encodr", "mit_b0"), "--model.encodr mit_b0"),
        (("--model.encoder", "mit_b9"), "mit_b9"),
        (("mit_b0",), "mit_b0"),
        (("--config", "gta2cs_hrda"), "--config cannot follow --; the recipe is --recipe's"),
        (("--config=gta2cs_hrda",), "--config=gta2cs_hrda cannot follow --"),
        (("--model.weights", "mit_b0.pth"), "model.weights must be left out, as FILE brings"),
    ],
)
def test_settings_without_a_meaning_are_named(tmp_path, release, capsys, settings, said):
    _, message = refuse(capsys, release, tmp_path / "out", settings=settings)
    assert said in message.split("error: ")[1]
    assert not (tmp_path / "out").exists()


def test_a_converted_run_may_have_another_precision():
    words = ("--model.encoder", "mit_b0", "--precision", "bf16")
    assert convert.settings("gta2cs_hrda", words).precision == "bf16"


def test_settings_need_two_dashes_before_them(tmp_path, release, capsys):
    words = [str(release), "--recipe", "gta2cs_daformer", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        convert.main([*words, *SMALL])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "settings of the recipe follow after --, as in -- --model.encoder " in message


def test_a_point_in_a_value_makes_no_setting_of_an_option(tmp_path, states):
    file, recipe = write(tmp_path / "latest.pth", states["model."]), tmp_path / "mine.yaml"
    recipe.write_text("base: gta2cs_daformer\n")
    words = [str(file), f"--recipe={recipe}", f"--out={tmp_path / 'v1.0'}", "--", *SMALL]
    assert convert.main(words) == 0
    assert checkpoint.load_run(tmp_path / "v1.0")[1].recipe == "mine"


def test_settings_of_a_recipe_file_are_kept(tmp_path, states):
    recipe = tmp_path / "mine.yaml"
    model = {"encoder": "mit_b0", "weights": "a/hub"}
    recipe.write_text(yaml.safe_dump({"base": "gta2cs_daformer", "seed": 7, "model": model}))
    file = write(tmp_path / "latest.pth", states["model."])
    words = ("--evaluation.flip", "true")
    assert command(file, tmp_path / "out", recipe=str(recipe), settings=words) == 0
    _, config = checkpoint.load_run(tmp_path / "out")
    assert (config.recipe, config.seed, config.evaluation.flip) == ("mine", 7, True)
