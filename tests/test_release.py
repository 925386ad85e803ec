# SPDX-License-Identifier: Apache-2.0
"""What a release says of itself: one version, a citation, licences, and automation that holds."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import pipa_fast

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
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
    names = [re.match(r"[\w.-]+", line)[0] for line in PROJECT["dependencies"]]
    extras = PROJECT["optional-dependencies"]
    names += [
        re.match(r"[\w.-]+", line)[0] for e in ("bench", "export", "video") for line in extras[e]
    ]
    assert not [name for name in names if f"| {name.lower()} |" not in told.lower()]
