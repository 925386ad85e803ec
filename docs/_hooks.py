# SPDX-License-Identifier: Apache-2.0
"""Lets the site follow links that leave docs/, as a code host does: see mkdocs.yml.

A file outside docs/ that a page links to is part of the site as repository/PATH, with whatever it
links to in turn. A folder becomes its README.md, or else a page that lists its files.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = "repository/"
# Pages of the site that stand outside docs/, whether or not a page links to them
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "bench/results/README.md")
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)")
FENCED = re.compile(r"^(```.*?^```)", re.DOTALL | re.MULTILINE)


def of_site(path: str) -> str:
    """Return the site's name of a file or folder of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        path += "/README.md" if (ROOT / path / "README.md").exists() else "/index.md"
    return OUTSIDE + path


def of_repository(uri: str) -> str:
    """Return the repository's path of a page's name."""
    return uri.removeprefix(OUTSIDE) if uri.startswith(OUTSIDE) else f"docs/{uri}"


def targets(text: str, path: str) -> list[str]:
    """Return the files and folders outside docs/ that a document at `path` links to."""
    found = []
    for part in FENCED.split(text)[::2]:
        for link in LINK.findall(part):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
            if not target.startswith(("docs/", "..")) and (ROOT / target).exists():
                found.append(target)
    return found


def listing(folder: str) -> str:
    """Return a page that lists a folder's files."""
    files = sorted(p for p in (ROOT / folder).iterdir() if p.is_file())
    return f"# {folder}\n\n" + "\n".join(f"- [{p.name}]({p.name})" for p in files) + "\n"


def on_files(files: Files, config: Any) -> Files:
    """Add what pages link to outside docs/."""
    waiting = list(PAGES)
    for file in files.documentation_pages():
        waiting += targets(file.content_string, of_repository(file.src_uri))
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        uri = of_site(path)
        if uri in seen:
            continue
        seen.add(uri)
        whole = ROOT / of_repository(uri)
        if whole.exists():
            file = File.generated(config, uri, abs_src_path=str(whole))
            text = whole.read_text() if whole.suffix == ".md" else ""
        else:
            text = listing(path)
            file = File.generated(config, uri, content=text)
        files.append(file)
        waiting += targets(text, of_repository(uri))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn a page's links between files of the repository into links between pages of the site."""
    here = page.file.src_uri
    folder = posixpath.dirname(of_repository(here))

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[1]))
        if target.startswith("..") or not (ROOT / target).exists():
            return match[0]
        return posixpath.relpath(of_site(target), posixpath.dirname(here))

    parts = FENCED.split(markdown)
    return "".join(LINK.sub(moved, p) if i % 2 == 0 else p for i, p in enumerate(parts))
