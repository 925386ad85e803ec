# SPDX-License-Identifier: Apache-2.0
import math
from pathlib import Path

import pytest
import yaml

from pipa_fast.training.config import (
    load,
    merge,
    parse,
    read_recipe,
    recipes,
    to_dict,
)

INF = math.inf
LATE = {"source": {"weight": 0.0}, "mixed": {"weight": 1.0, "start": 5}}
OWN = {
    "data": {
        "source": "own",
        "source_root": "a",
        "target": "own",
        "target_root": "b",
        "classes": ["background", "roof"],
    },
    "model": {"num_classes": 2},
}
PATCH = {"adaptation": {"patch": {"weight": 0.1}}}


@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_recipe_loads_and_survives_its_own_dump(name):
    config = load(read_recipe(name))
    assert config.recipe == name
    assert load(yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config


def test_pipa_and_its_baselines_have_the_same_budget():
    streets = [name for name in recipes() if name.startswith("streets")]
    configs = {name: to_dict(load(read_recipe(name))) for name in streets}
    reference = configs["streets_source"]
    for name, config in configs.items():
        for key in ("iterations", "data", "optimizer", "precision"):
            mine, theirs = dict_without(config[key]), dict_without(reference[key])
            assert mine == theirs, f"{name}: {key}"


@pytest.mark.parametrize("name", [n for n in recipes() if not n.startswith("streets")])
def test_pipa_adds_its_terms_crops_and_cells_and_changes_nothing_else(name):
    plain = name.removesuffix("_pipa")
    baseline, config = (to_dict(load(read_recipe(n))) for n in (plain, f"{plain}_pipa"))
    for settings in (baseline, config):
        del settings["recipe"], settings["adaptation"]["pixel"], settings["adaptation"]["patch"]
        del settings["model"]["patch_stride"]
        for key in ("patch_crop", "patch_scale", "patch_overlap"):
            del settings["data"][key]
    assert config == baseline


@pytest.mark.parametrize("domains", ["gta2cs", "syn2cs"])
def test_what_daformer_added_to_dacs_is_not_in_dacs(domains):
    """DAFormer's experiments have `dacs` (0.99, no margins) and `dacs_a999_fdthings`."""
    for method, alpha, margins in (("dacs", 0.99, (0, 0)), ("daformer", 0.999, (15, 120))):
        adaptation = load(read_recipe(f"{domains}_{method}")).adaptation
        assert adaptation.ema_alpha == alpha
        assert (adaptation.mixed.ignore_top, adaptation.mixed.ignore_bottom) == margins
        assert (adaptation.features.weight > 0) == (method == "daformer")


def test_colours_change_where_nothing_adapts():
    """DAFormer's gta_to_cityscapes_512x512.py and its uda_gta_to_cityscapes_512x512.py."""
    found = {name for name in recipes() if load(read_recipe(name)).adaptation.source.augment}
    domains = ("gta2cs", "syn2cs")
    assert found == {f"{d}_source{end}" for d in domains for end in ("", "_pipa")}


@pytest.mark.parametrize("domains", ["cs2acdc", "cs2darkzurich"])
def test_daformer_keeps_its_margins_where_hrda_has_none(domains):
    """DAFormer's experiment 8 has `plcrop = True`, HRDA's 49 and MIC's 80 have False."""
    for method, margins in (("daformer", (15, 120)), ("hrda", (0, 0)), ("mic", (0, 0))):
        config = load(read_recipe(f"{domains}_{method}"))
        mixed = config.adaptation.mixed
        assert (mixed.ignore_top, mixed.ignore_bottom) == margins
        assert config.data.pseudo_margins is None


@pytest.mark.parametrize("domains", ["gta2cs", "syn2cs", "cs2acdc", "cs2darkzurich"])
def test_what_mic_masks(domains):
    """Its experiment 80: `separatetrgaug` where the target is Cityscapes, else `separate`."""
    masked = load(read_recipe(f"{domains}_mic")).adaptation.masked
    clear = domains.endswith("cs")
    assert (masked.images, masked.augment) == (("target", True) if clear else ("both", False))


def test_terms_are_the_same_alone_and_together():
    pixel, patch, both = (
        load(read_recipe(f"streets_pipa{end}")).adaptation for end in ("_pixel", "_patch", "")
    )
    assert (both.pixel, both.patch) == (pixel.pixel, patch.patch)
    assert both.pixel.weight > 0 and both.patch.weight > 0


def dict_without(value):
    return {k: v for k, v in value.items() if k != "source"} if isinstance(value, dict) else value


def test_override_beats_recipe_and_keeps_its_other_settings():
    config = load(read_recipe("streets_pipa"), ["--adaptation.pixel.temperature", "0.2"])
    assert config.adaptation.pixel.temperature == 0.2
    assert (
        config.adaptation.pixel.weight == load(read_recipe("streets_pipa")).adaptation.pixel.weight
    )


def test_numbers_without_a_dot_are_numbers():
    config = load({"recipe": "x"} | yaml.safe_load("optimizer: {lr: 1e-4}"))
    assert config.optimizer.lr == 1e-4


def test_merge_goes_down():
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}) == {"a": {"b": 1, "c": 3}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterationz": 3}, "iterations"),
        ({"optimizer": {"lrr": 3}}, "lrr"),
        ({"optimizer": {"lr": "fast"}}, "optimizer.lr"),
        ({"optimizer": {"lr": -1.0}}, "optimizer.lr must be"),
        ({"precision": "fp8"}, "precision"),
        ({"iterations": 0}, "iterations must be"),
        (
            {"run": {"keep_every": 1500}},
            r"keep_every must be a positive multiple of run.checkpoint_every \(1000\).*got 1500",
        ),
        ({"run": {"keep_every": 0}}, "run.keep_every must be a positive multiple"),
        ({"adaptation": {"pixel": {"weight": 1.0, "images": "mixed"}}}, "mixed.weight"),
        ({"optimizer": 3}, "optimizer must be a section of settings; got 3"),
        ({"adaptation": {"pixel": None}}, "adaptation.pixel must be a section"),
        ({"adaptation": {"source": {"weight": 0.0}}}, "adaptation must have a term"),
        ({"adaptation": LATE}, "adaptation must have a term .*mixed.weight=1.0 from step 5"),
        ({"data": {"source": "street_real"}}, "data.source must be .*did you mean 'streets_real'"),
        ({"data": {"target": "foo"}}, "data.target must be one of streets_synthetic, streets_real"),
        (
            {"adaptation": {"masked": {"weight": 1.0}}, "data": {"crop": [64, 5]}},
            r"data.crop must be sides above 5 .*; got \(64, 5\)",
        ),
        (
            {"evaluation": {"crop": [16, 16], "stride": [8, 17]}},
            r"evaluation.stride must be .* at most the crop \(16, 16\).*; got \(8, 17\)",
        ),
        ({"model": {"num_classes": 10}}, "model.num_classes must be 19.*; got 10"),
        (OWN | {"model": {}}, "model.num_classes must be 2, the number of data.classes; got 19"),
        (OWN | {"evaluation": {"classes": "16"}}, "evaluation.classes must be dataset"),
        (
            OWN | {"adaptation": {"features": {"weight": 1.0}}},
            "classes must be ids below 2",
        ),
        (
            {"data": {"classes": ["a", "b"]}},
            "data.source must be own, where data.classes",
        ),
        (merge(OWN, {"data": {"classes": ["a", "a"]}}), "data.classes must be 2 to 254 different"),
        (merge(OWN, {"data": {"classes": ["a"]}}), "data.classes must be 2 to 254 different names"),
        ({"model": {"num_classes": 25}}, "model.num_classes must be 19.*; got 25"),
        (
            PATCH | {"data": {"stride": 2}},
            "data.stride must be a multiple of 4.*streets_s.*; got 2",
        ),
        (PATCH | {"data": {"stride": 2, "patch_crop": [62, 62]}}, "data.stride must be"),
        (PATCH | {"model": {"patch_stride": 16}}, "data.stride must be a multiple of 16.*; got 8"),
        (PATCH | {"model": {"patch_stride": 0}}, "model.patch_stride must be a multiple of 4"),
        (
            {"adaptation": {"mixed": {"weight": 1.0, "ignore_top": 30, "ignore_bottom": 34}}},
            "adaptation.mixed.ignore_top and ignore_bottom must leave rows.*64",
        ),
        (
            {"adaptation": {"masked": {"weight": 1.0}, "mixed": {"ignore_bottom": 120}}},
            "adaptation.mixed.ignore_top and ignore_bottom must leave rows.*64 .*; got 0 and 120",
        ),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        load(merge({"recipe": "x"}, changes))


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("seed", [-1, 2**63]),
        ("optimizer.lr", [0.0, -1.0, INF]),
        ("optimizer.head_lr_multiplier", [0.0, INF]),
        ("optimizer.weight_decay", [-0.1, INF]),
        ("optimizer.power", [-1.0]),
        ("optimizer.betas", [[0.9, 1.0], [-0.1, 0.9]]),
        ("optimizer.warmup", [-1]),
        ("optimizer.warmup_ratio", [-0.1, 1.1]),
        ("optimizer.clip", [-1.0, 0.0]),
        ("data.patch_scale", [[0.0, 1.0], [1.0, INF]]),
        ("evaluation.batch_size", [0, -1]),
        ("evaluation.window_batch", [0, -1]),
        ("run.timeout", [0.0, 1e10, INF]),
        ("adaptation.source.weight", [-1.0, INF, math.nan]),
        ("adaptation.mixed.start", [-1]),
        ("adaptation.mixed.threshold", [-0.1, 2.0]),
        ("adaptation.mixed.jitter", [-0.1, 1.1]),
        ("adaptation.mixed.ignore_top", [-1]),
        ("adaptation.mixed.ignore_bottom", [-1]),
        ("adaptation.pixel.start", [-1]),
        ("adaptation.pixel.ramp", [-1]),
        ("adaptation.pixel.temperature", [0.0, INF]),
        ("adaptation.pixel.base_temperature", [0.0, -1.0]),
        ("adaptation.pixel.num_anchors", [0]),
        ("adaptation.pixel.confidence", [-0.1, 1.1, math.nan]),
        ("adaptation.patch.start", [-1]),
        ("adaptation.patch.ramp", [-1]),
        ("adaptation.patch.temperature", [0.0]),
        ("adaptation.patch.confidence_threshold", [-0.1, 1.1]),
        ("adaptation.patch.bank_confidence", [-0.1, 1.1]),
        ("adaptation.patch.num_pairs", [0]),
        ("adaptation.patch.bank", [0]),
    ],
)
def test_numbers_out_of_range_are_named(setting, values):
    for value in values:
        changes = value
        for key in reversed(setting.split(".")):
            changes = {key: changes}
        with pytest.raises(ValueError, match=f"{setting} must be .*; got"):
            load(merge({"recipe": "x"}, changes))


def test_the_ends_of_ranges_are_fine():
    load(read_recipe("streets_pipa"), ["--optimizer.clip", "1", "--optimizer.weight_decay", "0"])
    load(read_recipe("streets_pipa"), ["--optimizer.clip", "null", "--optimizer.betas", "[0, 0.9]"])
    # the grid of the crops is nobody's business where there are none
    load(read_recipe("streets_source"), ["--data.stride", "2"])
    load(read_recipe("streets_selftrain"), ["--adaptation.source.weight", "0"])


def test_unknown_recipe_is_suggested(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse(["--config", "streets_pippa"])
    assert exit_.value.code == 2
    assert "did you mean 'streets_pipa'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("--optimizer.lrr", "did you mean 'optimizer.lr'?"),
        ("--optimizer.rl", "did you mean 'optimizer.lr'?"),
        ("--optimiser.lr", "did you mean 'optimizer.lr'?"),
        ("--adaptation.pixl.weight", "did you mean 'adaptation.pixel.weight'?"),
        ("--num_pairs", "did you mean 'adaptation.patch.num_pairs'?"),
        ("--resum", "did you mean 'resume'?"),
        ("--nonsense", "unrecognized arguments: --nonsense 3\n"),
    ],
)
@pytest.mark.parametrize("separator", [" ", "="])
def test_unknown_option_ends_with_code_2(option, hint, separator, capsys):
    with pytest.raises(SystemExit) as exit_:
        parse(["--config", "streets_pipa", *f"{option}{separator}3".split()])
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert option in said and hint.replace(" 3", f"{separator}3") in said


def test_unknown_keys_of_a_recipe_are_suggested():
    for changes, near in (
        ({"optimiser": {"lr": 3}}, "optimizer.lr"),
        ({"optimizer": {"rl": 3}}, "optimizer.lr"),
        ({"adaptation": {"pixel": {"num_anchorz": 1}}}, "adaptation.pixel.num_anchors"),
    ):
        with pytest.raises(ValueError, match=f"did you mean '{near}'"):
            load(merge({"recipe": "x"}, changes))


def test_a_known_option_with_a_bad_value_gets_no_suggestion():
    with pytest.raises(ValueError, match="optimizer.lr") as error:
        load(read_recipe("streets_pipa"), ["--optimizer.lr", "fast"])
    assert "did you mean" not in str(error.value)


def test_of_two_configs_the_last_counts_as_of_any_option():
    words = ["--config", "streets_source", "--seed", "1", "--config=streets_pipa", "--seed", "2"]
    config = parse(words)
    assert (config.recipe, config.seed) == ("streets_pipa", 2)


def test_resume_has_a_short_name(capsys):
    assert parse(["--config", "streets_pipa"]).run.resume == "never"
    assert parse(["--config", "streets_pipa", "--resume", "auto"]).run.resume == "auto"
    assert parse(["--config", "streets_pipa", "--resume=auto"]).run.resume == "auto"
    with pytest.raises(SystemExit):
        parse(["--help"])
    assert "--resume auto" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["a: [1", "just words", "\x80"])
def test_recipes_that_are_no_mapping_are_named(text, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="mine.yaml"):
        read_recipe(str(path))


def test_a_first_crop_that_is_the_target_must_be_one():
    recipe = read_recipe("streets_pipa")
    change = ["--adaptation.patch.first_is_target", "true"]
    with pytest.raises(ValueError, match=r"first_is_target must be false, unless .*data.crop"):
        load(recipe, [*change, "--data.crop", "[64, 128]", "--data.patch_crop", "[64, 64]"])
    load(recipe, [*change, "--data.crop", "[64, 64]", "--data.patch_crop", "[64, 64]"])


@pytest.mark.parametrize(
    ("recipe", "words", "message"),
    [
        ("gta2cs_dacs", ["--data.crop", "[28,512]"], "data.crop must be at least 32"),
        ("gta2cs_dacs", ["--data.crop", "[37,53]"], ""),
        ("gta2cs_daformer", ["--data.crop", "[37,53]"], "data.crop must be multiples of 32, where"),
        (
            "gta2cs_daformer_pipa",
            ["--data.patch_crop", "[16,64]"],
            "data.patch_crop must be at lea",
        ),
        ("gta2cs_hrda", ["--data.crop", "[1024,1056]"], "data.crop must be multiples of 64, where"),
        ("gta2cs_hrda", ["--model.hrda.detail", "[16,512]"], "model.hrda.detail must be at lea"),
        ("streets_pipa", ["--data.crop", "[8,120]"], ""),
    ],
)
def test_crops_hold_the_coarsest_cells(recipe, words, message):
    """Told before anything is read: a MiT raises torch's RuntimeError for less, in a step."""
    if not message:
        load(read_recipe(recipe), [*words, "--adaptation.mixed.ignore_bottom", "0"])
        return
    words += ["--adaptation.mixed.ignore_bottom", "0", "--adaptation.mixed.ignore_top", "0"]
    with pytest.raises(ValueError, match=message):
        load(read_recipe(recipe), words)


@pytest.mark.parametrize(
    ("model", "cell"),
    [
        ({"encoder": "resnet101", "head": "deeplabv2"}, 8),
        ({"encoder": "resnet101", "head": "daformer", "hrda": {"enabled": True}}, 16),
        ({"head": "segformer"}, 4),
        ({"pixel": 1.0}, 4),
    ],
)
def test_batch_norm_has_more_than_one_value(model, cell):
    pixel = {"weight": model.pop("pixel", 0.0)}
    model.setdefault("hrda", {})["detail"] = [cell, cell]

    def of(*crop, batch=1, norm="batch"):
        data = {"crop": crop, "batch_size": batch}
        parts = {"data": data, "model": model | {"batch_norm": norm}}
        return load({"recipe": "r", "adaptation": {"pixel": pixel}, **parts})

    for crop in ((cell, 2 * cell), (2 * cell, cell)):
        assert of(*crop)
    assert of(cell, cell, batch=2) and of(cell, cell, norm="frozen")
    with pytest.raises(ValueError, match=rf"data\.crop must be above {cell} high or wide"):
        of(cell, cell)


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("nosuch", "base of .*mine.yaml must be a YAML file or one of .*; got 'nosuch'"),
        (
            "parts/hrad",
            "base of .*mine.yaml must be .* got 'parts/hrad' .did you mean 'parts/hrda'",
        ),
        ("3", "base of .*mine.yaml must be a recipe's name or a list of names; got 3"),
        ("[gta2cs_hrda, 3]", "must be a recipe's name or a list of names; got .'gta2cs_hrda', 3"),
        (
            "mine.yaml",
            "base of mine.yaml must be a recipe that is not built on it; got 'mine.yaml'",
        ),
    ],
)
def test_a_base_that_is_none_is_told(base, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(f"base: {base}\n")
    with pytest.raises(ValueError, match=said):
        read_recipe("mine.yaml")


def test_a_base_is_looked_for_beside_its_recipe_first(tmp_path, monkeypatch):
    for folder, seed in (("mine", 1), ("here", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "common.yaml").write_text(f"seed: {seed}\n")
    monkeypatch.chdir(tmp_path / "here")
    recipe = tmp_path / "mine" / "a.yaml"
    recipe.write_text("base: [streets_pipa, common.yaml]\n")
    assert read_recipe(str(recipe))["seed"] == 1
    (tmp_path / "mine" / "common.yaml").unlink()
    assert read_recipe("../mine/a.yaml")["seed"] == 2
    recipe.write_text("base: ../mine/a.yaml\n")
    with pytest.raises(ValueError, match="must be a recipe that is not built on it"):
        read_recipe(str(recipe))
