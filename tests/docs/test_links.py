# SPDX-License-Identifier: Apache-2.0
"""Links of the documents lead somewhere, and the site's navigation holds every page."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.documents import DOCUMENTS, ROOT, anchors, name, prose

PICTURES = 300_000  # bytes


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_resolve(path: Path):
    for link in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", prose(path)):
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), f"{link}: {sorted(anchors(target))}"


def site() -> dict[str, Any]:
    class Loader(yaml.SafeLoader):
        """Reads the tags of Python objects as nothing."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    return yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)  # noqa: S506


def pages(entries: Any) -> list[str]:
    """Return the pages of a navigation."""
    if isinstance(entries, str):
        return [entries]
    values = entries.values() if isinstance(entries, dict) else entries
    return [page for entry in values for page in pages(entry)]


def test_navigation_holds_every_page_once():
    listed = pages(site()["nav"])
    assert len(listed) == len(set(listed))
    docs = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    outside = {page for page in listed if page.startswith("repository/")}
    assert set(listed) - outside == docs
    for page in outside:
        assert (ROOT / page.removeprefix("repository/")).is_file(), page


def test_pictures_are_small_and_described():
    for picture in (ROOT / "docs" / "pictures").glob("*"):
        assert picture.stat().st_size < PICTURES, picture.name
    for path in DOCUMENTS:
        assert "![](" not in path.read_text(), f"{name(path)}: a picture without words"
