# SPDX-License-Identifier: Apache-2.0
import pytest
import yaml

from pipa_fast.training.config import (
    from_dict,
    load,
    merge,
    parse,
    read_recipe,
    recipes,
    to_dict,
)


@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_recipe_loads_and_survives_its_own_dump(name):
    config = load(read_recipe(name))
    assert config.recipe == name
    assert from_dict(yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config


def test_pipa_and_its_baselines_have_the_same_budget():
    shared = {"iterations", "data", "optimizer", "precision"}
    configs = {name: to_dict(load(read_recipe(name))) for name in recipes()}
    streets = {n: c for n, c in configs.items() if n.startswith("streets")}
    reference = streets["streets_source"]
    for name, config in streets.items():
        for key in shared:
            mine, theirs = dict_without(config[key]), dict_without(reference[key])
            assert mine == theirs, f"{name}: {key}"


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
        ({"adaptation": {"pixel": {"weight": 1.0, "images": "mixed"}}}, "mixed.weight"),
        ({"adaptation": {"mixed": {"threshold": 2.0}}}, "mixed.threshold must be"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        load(merge({"recipe": "x"}, changes))


def test_unknown_recipe_is_suggested(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse(["--config", "streets_pippa"])
    assert exit_.value.code == 2
    assert "did you mean 'streets_pipa'" in capsys.readouterr().err


def test_unknown_option_ends_with_code_2(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse(["--config", "streets_pipa", "--optimizer.lrr", "3"])
    assert exit_.value.code == 2
    assert "lrr" in capsys.readouterr().err
