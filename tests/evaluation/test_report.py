# SPDX-License-Identifier: Apache-2.0
import base64
import io
import json
import re
from html import unescape
from html.parser import HTMLParser

import pytest
from PIL import Image

from pipa_fast.evaluation.inference import SlidingWindow
from pipa_fast.evaluation.report import write_report
from pipa_fast.evaluation.report_sections import _signed

VOID = {"meta", "img", "br", "line", "circle", "polyline", "path"}


class Checker(HTMLParser):
    """Every tag closes the one that is open, and nothing is fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.sources += [v for k, v in attrs if k in ("src", "href", "srcset", "data") and v]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def check(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    assert not {"script", "link", "iframe"} & checker.tags
    assert not re.search(r"https?:|@import|url\(", html)
    assert all(s.startswith("data:image/png;base64,") for s in checker.sources)
    for source in checker.sources:
        with Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as image:
            image.load()
    return checker


def sections(html: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", html)


def test_a_full_report_is_self_contained(full):
    html = full.read_text()
    checker = check(html)
    assert full.stat().st_size < 3_000_000
    assert len(checker.sources) == 3 * 6
    assert sections(html) == [
        "What it sees",
        "IoU per class",
        "Training",
        "Pixel embeddings by class",
        "Settings",
    ]
    assert "prefers-color-scheme: dark" in html and 'name="viewport"' in html
    assert "42.2" in html and "+12.2" in html and "source-only" in html
    assert "teacher's confidence" in unescape(html) and html.count('class="scatter"') == 2
    assert "nan" not in re.sub(r'src="[^"]*"', "", html)
    assert list(full.parent.glob(".*.tmp")) == []


def test_settings_are_escaped_and_differences_shown(full):
    html = full.read_text()
    assert (
        "<script" not in html
        and "<i>" not in html
        and "&lt;script&gt;" in html
        and "<b>streets" not in html
    )
    differing = html.split("<h2>Settings</h2>")[1].split("<details>")[0]
    assert "mixed.weight" in differing and "recipe" not in differing and "seed" not in differing


def test_panels_are_saved_beside_the_report(full):
    with Image.open(full.parent / "panels.png") as picture:
        assert picture.width == 8 + 6 * 264


def test_without_networks_there_are_numbers_alone(make_run):
    run = make_run("streets_source")
    html = write_report(run).read_text()
    check(html)
    assert sections(html) == ["IoU per class", "Training", "Settings"]
    assert "source-only" not in html and not (run / "panels.png").exists()


def test_without_a_baseline_before_is_the_initial_network(make_run, network, make_network, dataset):
    html = write_report(
        make_run("a"), network=network, dataset=dataset, initial=make_network(5)
    ).read_text()
    check(html)
    assert "before training" in html and "student's confidence" in unescape(html)


def test_panels_and_embeddings_see_images_as_the_evaluation_does(make_run, network, dataset):
    seen = set()
    network.register_forward_pre_hook(lambda _, images: seen.add(tuple(images[0].shape[2:])))
    window = SlidingWindow.of((16, 16))
    write_report(
        make_run("streets_pipa", 42.0),
        network=network,
        dataset=dataset,
        image_size=(16, 32),
        window=window,
    )
    assert seen == {(16, 16), (16, 32)}  # panels' windows, embeddings' whole images


def test_panels_see_images_mirrored_too_where_the_evaluation_does(make_run, network, dataset):
    seen, passes = [], []
    network.register_forward_pre_hook(lambda *_: seen.append(1))
    for name, flip in (("plain", False), ("mirrored", True)):
        seen.clear()
        write_report(make_run(name), network=network, dataset=dataset, flip=flip, num_panels=3)
        passes.append(len(seen))
    assert passes[1] - passes[0] == 3, "a second pass for each panel"


def test_a_run_with_results_alone_is_reported(make_run):
    run = make_run("a")
    (run / "history.jsonl").unlink()
    (run / "config.yaml").unlink()
    assert sections(write_report(run).read_text()) == ["IoU per class"]


def test_a_score_of_no_labelled_pixel_is_no_number(make_run):
    """`history.jsonl` has null for it."""
    run = make_run("a")
    record = {"kind": "eval", "iteration": 400, "miou": None, "iou": {}}
    with (run / "history.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    html = write_report(run).read_text()
    check(html)
    assert "Training" in sections(html)


def test_unfinished_runs_are_named(make_run, tmp_path, network):
    with pytest.raises(ValueError, match=r"results\.json; got '.*nowhere'"):
        write_report(tmp_path / "nowhere")
    run = make_run("a")
    (run / "history.jsonl").write_text("{broken")
    with pytest.raises(ValueError, match=r"history\.jsonl cannot be read"):
        write_report(run)
    with pytest.raises(ValueError, match="network and dataset must be given together"):
        write_report(run, network=network)


@pytest.mark.parametrize(
    ("name", "text"),
    [("results.json", "[1]"), ("config.yaml", "just words"), ("history.jsonl", "{}\n3\n")],
)
def test_files_of_a_run_that_are_no_mappings_are_named(make_run, name, text):
    run = make_run("a")
    (run / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name} cannot be read: a record must be a mapping"):
        write_report(run)


def test_large_pictures_are_reduced(make_run, network, dataset):
    dataset.size = (512, 1024)
    path = write_report(make_run("a"), network=network, dataset=dataset, num_panels=2)
    for source in check(path.read_text()).sources:
        with Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as image:
            assert image.size == (512, 256)
    assert path.stat().st_size < 3_000_000


@pytest.mark.parametrize(
    ("value", "text"), [(1.25, "+1.2"), (-2.0, "\N{MINUS SIGN}2.0"), (-0.01, "0.0"), (0.0, "0.0")]
)
def test_differences_carry_their_sign(value, text):
    assert _signed(value) == text
