# SPDX-License-Identifier: Apache-2.0
"""Known vulnerabilities of what is installed, and whether that is what was tested.

    make audit      # which installs pip-audit beside the environment
    python -m bench.audit constraints.txt --pip-audit PATH_TO_PIP_AUDIT

pip-audit asks the package index for advisories. Where it is not there, or the index does not answer
for a package, that is said, and the pins alone are compared with what is installed. The exit status
is 1 where a package has a known vulnerability or another version than its pin.
"""

import importlib.metadata
import json
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.pins import plain, read_pins
from bench.program import make_parser

TIMEOUT = 300  # s, for all packages


def installed_versions() -> dict[str, str]:
    """Return the version of every installed package, without a build's own mark, as +cpu."""
    return {
        plain(found.name): found.version.split("+")[0]
        for found in importlib.metadata.distributions()
    }


def differences(pins: Mapping[str, str], installed: Mapping[str, str]) -> tuple[list[str], int]:
    """Return what is installed in another version than its pin, and how many are not installed."""
    found = {name: installed.get(plain(name)) for name in pins}
    wrong = [
        f"{name} is {found[name]}, pinned {version}"
        for name, version in pins.items()
        if found[name] not in (None, version)
    ]
    return wrong, sum(version is None for version in found.values())


def advisories(report: Mapping[str, Any]) -> tuple[list[str], int, int]:
    """Return what pip-audit's report knows against packages, how many it knows, and how many not.

    Packages that the index does not have carry a `skip_reason`.
    """
    packages = report["dependencies"]
    known = [package for package in packages if "skip_reason" not in package]
    found = [
        f"{package['name']} {package['version']}: {flaw['id']}"
        + (f", fixed in {', '.join(flaw['fix_versions'])}" if flaw["fix_versions"] else "")
        for package in known
        for flaw in package["vulns"]
    ]
    return found, len(known), len(packages) - len(known)


def ask(program: Path) -> tuple[Mapping[str, Any] | None, str]:
    """Return pip-audit's report on this environment, or None and why there is none."""
    if not program.is_file():
        return None, f"{program} is not there"
    words = [str(program), "--path", sysconfig.get_path("purelib"), "--format", "json"]
    words += ["--progress-spinner", "off"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        return json.loads(done.stdout), ""
    except subprocess.TimeoutExpired:
        return None, f"it took more than {TIMEOUT} s"
    except json.JSONDecodeError:  # it says what went wrong on the other stream
        return None, (done.stderr.strip().splitlines() or ["it wrote nothing"])[-1]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = make_parser("bench.audit", __doc__)
    parser.add_argument("pins", type=Path, help="file of NAME==VERSION lines")
    parser.add_argument("--pip-audit", type=Path, help="program to ask for advisories")
    args = parser.parse_args(argv)
    bad: list[str] = []
    if args.pip_audit is not None:
        report, reason = ask(args.pip_audit)
        if report is None:
            print(f"advisories: not looked up: {reason}")
        else:
            bad, known, unknown = advisories(report)
            print(f"advisories: {len(bad)} for {known} packages; {unknown} the index cannot tell")
    pins = read_pins(args.pins)
    wrong, absent = differences(pins, installed_versions())
    same = len(pins) - len(wrong) - absent
    print(f"pins: {same} of {len(pins)} as pinned, {len(wrong)} differ, {absent} not installed")
    for what in (*bad, *wrong):
        print(what, file=sys.stderr)
    return bool(bad or wrong)


if __name__ == "__main__":
    sys.exit(main())
