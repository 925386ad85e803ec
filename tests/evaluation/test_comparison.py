# SPDX-License-Identifier: Apache-2.0
import io
import json

from rich.console import Console

from pipa_fast.compare import main
from pipa_fast.evaluation.comparison import comparison_table, grouped
from pipa_fast.evaluation.runs import read_run


def printed(table) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_differences_are_to_the_first_run(make_run):
    runs = [make_run("streets_source", 30.0), make_run("streets_pipa", 42.5), make_run("other", 25)]
    text = printed(comparison_table([read_run(r) for r in runs]))
    row = next(line for line in text.splitlines() if "mIoU" in line)
    assert [w for w in row.replace("│", " ").split()] == [
        "mIoU",
        "30.0",
        "42.5",
        "+12.5",
        "25.0",
        "-5.0",
    ]
    assert text.index("road") < text.index("sky") < text.index("car")
    assert "streets_pipa" in text and "seed 3" in text


def test_a_class_that_one_run_lacks_has_no_difference(make_run):
    runs = [make_run("a"), make_run("b")]
    results = (runs[1] / "results.json").read_text()
    (runs[1] / "results.json").write_text(results.replace('"car"', '"bus"'))
    rows = {
        line.split()[1]: line.split()
        for line in printed(comparison_table([read_run(r) for r in runs])).splitlines()
        if "│" in line
    }
    assert rows["car"][-2] == "-" and rows["bus"][3] == "-"


def test_seeds_are_one_group_wherever_their_data_lay(make_run):
    places = {"source_root": "/node/gta5", "target_root": "/node/cs", "num_workers": 4}
    runs = [
        make_run("a", recipe="r", seed=1, data={"batch_size": 2}),
        make_run("b", recipe="r", seed=2, data={"batch_size": 2, **places}, device="cuda"),
        make_run("c", recipe="r", seed=3, data={"batch_size": 4}),
        make_run("d", recipe="r", seed=3, data={"batch_size": 2}, evaluation={"flip": True}),
    ]
    groups = grouped([read_run(run) for run in runs])
    assert [[run.path.name for run in group.runs] for group in groups] == [["a", "b"], ["c"], ["d"]]


def test_a_step_of_as_many_images_is_the_same_on_any_number_of_ranks(make_run):
    runs = [
        make_run("a", recipe="r", seed=1, data={"batch_size": 2}),
        make_run("b", recipe="r", seed=2, data={"batch_size": 1}),
        make_run("c", recipe="r", seed=3, data={"batch_size": 1}),
    ]
    for run, images in zip(runs, (2, 2, 4), strict=True):
        results = json.loads((run / "results.json").read_text()) | {"images_per_step": images}
        (run / "results.json").write_text(json.dumps(results))
    groups = grouped([read_run(run) for run in runs])
    assert [[run.path.name for run in group.runs] for group in groups] == [["a", "b"], ["c"]]


def test_the_command_prints_the_table_and_the_reports(make_run, capsys):
    run = make_run("a")
    (run / "report.html").write_text("")
    assert main([str(run), str(run)]) == 0
    out = capsys.readouterr().out
    assert "mIoU" in out and "report.html" in out


def test_names_of_folders_are_text_and_told_for_the_present_one(make_run, monkeypatch, capsys):
    run = make_run("lr[red]")
    (run / "report.html").write_text("")
    monkeypatch.chdir(run)
    assert main([".", str(run)]) == 0
    out = capsys.readouterr().out
    assert out.count("lr[red]") == 4, "two columns, a group, and the second run's report"
