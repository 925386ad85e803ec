# SPDX-License-Identifier: Apache-2.0
"""One command for all: equal to the modules, completed by shells, and short where it complains."""

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pipa_fast
from pipa_fast import cli

ROOT = Path(__file__).resolve().parents[1]
ENTRY = "import sys; from pipa_fast.cli import main; sys.exit(main())"


def test_the_entry_point_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"pipa-fast": "pipa_fast.cli:main"}


def helped(name):
    """Ask for a command's help. What torch wraps around training's turns exit 0 into a return."""
    try:
        assert cli.main([name, "--help"]) == 0
    except SystemExit as stop:
        assert stop.code == 0


def test_every_command_line_is_a_command():
    """A module of the package that parses a command line is in the list, and no other is."""
    modules = {p.stem for p in (ROOT / "pipa_fast").glob("*.py") if "def main(" in p.read_text()}
    assert modules - {"cli"} == set(cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_names_the_command_and_ends_with_an_example_that_parses(name, monkeypatch, capsys):
    module = importlib.import_module(f"pipa_fast.{name}")
    for called, prog in (("/bin/pipa-fast", f"pipa-fast {name}"), ("x", f"-m pipa_fast.{name}")):
        monkeypatch.setattr(sys, "argv", [called])
        helped(name)
        out = " ".join(capsys.readouterr().out.split())
        assert prog in out
        assert out.lower().count("example: ") == 1, "one example"
    if name != "train":  # whose example is parsed with the documents
        words = module.parser().epilog.split(f"{name} ", 1)[1].split(" > ")[0].split()
        module.parser().parse_args(words)


@pytest.mark.parametrize("name", ["evaluate", "predict", "export", "convert", "compare"])
def test_ctrl_c_ends_a_command_with_one_line(name, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    module = importlib.import_module(f"pipa_fast.{name}")
    monkeypatch.setattr(module, "run", interrupted)
    with pytest.raises(SystemExit) as stop:
        module.main(module.parser().epilog.split(f"{name} ", 1)[1].split(" > ")[0].split())
    assert stop.value.code == 130 and capsys.readouterr().err == "stopped\n"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_a_job_has_the_cores_that_it_was_given():
    """`taskset` and Slurm leave a process a part of the machine's."""
    one = "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    code = f"import os, pipa_fast.program as program; {one}; print(program.cores())"
    assert run("-c", code).stdout == "1\n"


def option_helps(parser):
    for action in parser._actions:
        if isinstance(getattr(action, "choices", None), dict) and not action.option_strings:
            for part in action.choices.values():
                yield from option_helps(part)
        elif action.option_strings and "-h" not in action.option_strings:
            yield action


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name != "train"])
def test_every_option_says_what_it_does_and_what_it_is_without(name):
    for action in option_helps(importlib.import_module(f"pipa_fast.{name}").parser()):
        assert action.help, action.option_strings
        if action.nargs != 0 and not action.required and action.default is not None:
            assert "default" in action.help, action.option_strings


def test_help_of_training_tells_what_stands_below_a_setting(capsys):
    helped("train")
    out = " ".join(capsys.readouterr().out.split())
    assert "Height and width of source and target crops [pixels]." in out
    assert "--config CONFIG [--recipe RECIPE]" in out, "the recipe brings its name"


def run(*words, **environment):
    return subprocess.run(
        [sys.executable, *words],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )


def test_the_three_forms_say_the_same():
    forms = [
        run("-c", ENTRY, "info"),
        run("-m", "pipa_fast", "info"),
        run("-m", "pipa_fast.info"),
    ]
    assert [form.returncode for form in forms] == [0, 0, 0]
    assert forms[0].stdout == forms[1].stdout == forms[2].stdout != ""


def test_a_wrong_command_or_option_is_one_paragraph(capsys):
    for words, said in (
        (["evaluat"], "there is no command 'evaluat' (did you mean 'evaluate'?)"),
        (["evaluate", "--rum", "x"], "`python -m pipa_fast.evaluate --help` lists the options."),
        (["evaluate", "--run", "nowhere"], "run must be a folder with config.yaml"),
        (["completion", "fish"], "invalid choice: 'fish'"),
        (["compare"], "the following arguments are required: runs"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert stop.value.code == 2
        err = capsys.readouterr().err
        assert said in err and err.startswith("error: ") and err.count("\n") == 1, err


def test_alone_it_shows_what_there_is(capsys):
    assert cli.main([]) == 2
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in cli.COMMANDS)
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0 and pipa_fast.__version__ in capsys.readouterr().out


@pytest.mark.parametrize("shell", cli.SHELLS)
def test_shells_complete_commands_and_their_options(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    words = [*cli.COMMANDS, "cityscapes", "--data.micro_batch", "--window-batch"]
    assert not [word for word in words if word.removeprefix("--") not in script]


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory):
    made = [sys.executable, "-c", ENTRY, "completion", "bash"]
    script = tmp_path_factory.mktemp("bash") / "completion"
    script.write_text(subprocess.run(made, cwd=ROOT, capture_output=True, text=True).stdout)
    return script


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("evaluate --fl", ["--flip"]),
        ("prepare gta5 --", ["--help", "--root", "--check", "--subset", "--jobs"]),
        ("prepare streets --l", ["--layout"]),
        ("train --res", ["--resume"]),
        ("comple", ["completion"]),
        ("completion ", list(cli.SHELLS)),
        ("--v", ["--version"]),
    ],
)
def test_bash_completes(words, offered, bash_script):
    line = ["pipa-fast", *words.split(" ")]
    ask = f"""source {bash_script}
COMP_WORDS=({" ".join(repr(word) for word in line)}); COMP_CWORD={len(line) - 1}
$(complete -p pipa-fast | sed 's/.*-F \\([^ ]*\\).*/\\1/') pipa-fast '{line[-1]}' {line[-2]}
echo "${{COMPREPLY[@]}}"
"""
    bash = ["bash", "-c", ask]
    done = subprocess.run(bash, capture_output=True, text=True)
    assert done.stdout.split() == offered, done.stderr


def test_a_bug_report_holds_what_is_asked_first(capsys, monkeypatch):
    monkeypatch.setenv("PIPA_FAST_BACKEND", "reference")
    assert cli.main(["info", "--report"]) == 0
    out = capsys.readouterr().out
    assert "PIPA_FAST_BACKEND" in out and "torch" in out and "C library" in out
    assert out.count("```") == 2 and out.rstrip().endswith("</details>")
    assert str(Path.home()) not in out and str(ROOT) not in out


def test_a_bug_report_of_a_broken_extension_tells_no_path(capsys, monkeypatch):
    load, broken = importlib.import_module, ROOT / "pipa_fast" / "_C.abi3.so"

    def fail(name, *rest):
        if name == "pipa_fast._C":
            raise ImportError(f"{broken}: undefined symbol: x, see {Path.home()}/notes")
        return load(name, *rest)

    monkeypatch.setattr(importlib, "import_module", fail)
    assert cli.main(["info", "--report"]) == 0
    out = capsys.readouterr().out
    assert "absent: pipa_fast/_C.abi3.so: undefined symbol: x, see ~/notes" in out
    assert str(ROOT) not in out and str(Path.home()) not in out
