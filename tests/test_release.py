# SPDX-License-Identifier: Apache-2.0
"""What a release says of itself: one version, a citation, licences, and automation that holds."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import pipa_fast
from bench.pins import plain, read_pins

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, BUILD = SETTINGS["project"], SETTINGS["build-system"]
NEEDED = [Requirement(line) for line in PROJECT["dependencies"]]
FORMS = sorted((ROOT / ".github").rglob("*.yml"))


def test_the_version_is_in_one_place():
    assert "version" in PROJECT["dynamic"]
    assert f"## [{pipa_fast.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == pipa_fast.__version__


def test_the_citation_has_what_its_format_wants():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "type"} <= cited.keys()
    assert cited["license"] == PROJECT["license"]
    (paper,) = cited["references"]
    assert [a["family-names"] for a in paper["authors"]] == ["Chen", "Zheng", "Yang", "Chua"]
    assert paper["identifiers"][0]["value"] == "arXiv:2211.07609"


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_forms_are_yaml(path: Path):
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_the_workflow_runs_targets_that_exist():
    text = (ROOT / ".github/workflows/ci.yml").read_text()
    jobs = yaml.safe_load(text)["jobs"]
    targets = set(re.findall(r"run: make ([a-z -]+)$", text, re.MULTILINE))
    named = {word for target in targets for word in target.split()}
    named |= set(jobs["whole"]["strategy"]["matrix"]["target"])
    known = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named and named <= known
    versions = jobs["test"]["strategy"]["matrix"]["python"]
    assert PROJECT["requires-python"] == f">={versions[0]}"


def test_every_dependency_has_its_licence_told():
    told = (ROOT / "docs/licences.md").read_text()
    names = [requirement.name for requirement in NEEDED]
    extras = PROJECT["optional-dependencies"]
    names += [
        re.match(r"[\w.-]+", line)[0] for e in ("bench", "export", "video") for line in extras[e]
    ]
    assert not [name for name in names if f"| {name.lower()} |" not in told.lower()]


def pins(file: str) -> dict[str, Version]:
    return {plain(name): Version(pin) for name, pin in read_pins(ROOT / file).items()}


def test_the_pins_of_the_tests_are_within_the_ranges():
    pinned = pins("constraints.txt")
    extras = [Requirement(line) for e in PROJECT["optional-dependencies"].values() for line in e]
    for requirement in [*NEEDED, *extras]:
        assert pinned[plain(requirement.name)] in requirement.specifier, requirement


def test_ranges_start_at_the_oldest_versions_that_are_tried():
    floors = {
        plain(requirement.name): Version(part.version)
        for requirement in [*NEEDED, *map(Requirement, BUILD["requires"])]
        for part in requirement.specifier
        if part.operator == ">="
    }
    assert floors == pins("constraints-oldest.txt")
