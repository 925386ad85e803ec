# SPDX-License-Identifier: Apache-2.0
"""A real browser without a window, and what it says of a page: `make browser` brings one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

OURS = Path(__file__).resolve().parents[1] / "build" / "browser"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SIZES = {"phone": (390, 844), "desktop": (1440, 900)}
# Relative luminance and contrast as WCAG 2 defines them, of every element that holds text itself.
TEXTS = """() => {
  const rgb = s => {
    const v = s.match(/[\\d.]+/g).map(Number); return v.length < 4 ? [...v, 1] : v; };
  const bright = c => { const [r, g, b] = c.slice(0, 3).map(v => {
    v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) {
    const c = rgb(getComputedStyle(e).backgroundColor); if (c[3] > 0.99) return c; }
    return [255, 255, 255, 1]; };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const box = e.getBoundingClientRect(), style = getComputedStyle(e);
    if (!box.width || !box.height || style.visibility === 'hidden') continue;
    const svg = e instanceof SVGElement;
    const scale = svg ? e.getScreenCTM().a : 1;
    const one = bright(rgb(svg ? style.fill : style.color)), other = bright(behind(e));
    found.push({ text: e.textContent.trim().slice(0, 40), size: parseFloat(style.fontSize) * scale,
      right: box.right, left: box.left,
      room: e.closest('figure, .tile, section, header, footer, main').getBoundingClientRect().right,
      contrast: (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05) });
  }
  return found; }"""


def executable() -> str | None:
    """Return where a browser is, the system's or the one that `make browser` unpacked."""
    ours = OURS / "chromium"
    return str(ours) if ours.is_file() else next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def browser() -> Iterator[Any]:
    """Yield a browser, or skip the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="`make browser` installs it")
    found = executable()
    if found is None:
        pytest.skip("no browser here: `make browser` brings one")
    libraries = os.environ | {"LD_LIBRARY_PATH": str(OURS / "lib")}
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(
            executable_path=found, args=["--no-sandbox"], env=libraries
        )
        try:
            yield opened
        finally:
            opened.close()


def look(opened: Any, path: Path, size: str, scheme: str, picture: Path | None = None) -> list[Any]:
    """Open a file without a network; check that nothing is missing, and return its texts."""
    width, height = SIZES[size]
    viewport = {"width": width, "height": height}
    context = opened.new_context(viewport=viewport, color_scheme=scheme, offline=True)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(request.url))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.resolve().as_uri(), wait_until="load")
    assert not complaints
    assert not [url for url in asked if not url.startswith(("file:", "data:"))]
    missing = "[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)"
    assert page.evaluate(missing) == []
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width, f"{size}: {wide} pixels wide, to be scrolled sideways"
    if picture is not None:
        page.screenshot(path=str(picture), full_page=True)
    texts = page.evaluate(TEXTS)
    context.close()
    return texts
