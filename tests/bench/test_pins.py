# SPDX-License-Identifier: Apache-2.0
import pytest

from bench import pins

PINS = {"torch": "2.13.0", "numpy": "2.4.6", "triton": "3.9.0", "setuptools": "84.2.1"}


@pytest.fixture
def torch_of(monkeypatch, tmp_path):
    """Install nothing but a torch of a version that asks for this."""

    def install(version: str, *asks: str) -> None:
        about = tmp_path / f"torch-{version}.dist-info" / "METADATA"
        about.parent.mkdir()
        lines = ["Metadata-Version: 2.1", "Name: torch", f"Version: {version}"]
        about.write_text("\n".join(lines + [f"Requires-Dist: {ask}" for ask in asks]))
        monkeypatch.setattr("sys.path", [str(tmp_path)])

    return install


def test_a_torch_for_gpus_keeps_its_triton_and_setuptools(torch_of):
    # what torch 2.12.0 of the package index asks for
    torch_of("2.12.0", "setuptools<82", 'triton==3.7.0; platform_system == "Linux"')
    assert list(pins.beside_torch(PINS)) == ["torch==2.12.0", "numpy==2.4.6"]


def test_what_torch_admits_stays_pinned(torch_of):
    others = ['triton==1; platform_system == "Elsewhere"', 'numpy<1; extra == "old"']
    torch_of("2.13.0+cpu", "setuptools>=77.0.3", *others)
    assert list(pins.beside_torch(PINS)) == [f"{name}=={pin}" for name, pin in PINS.items()]


def test_without_requirements_all_pins_stay(torch_of):
    torch_of("2.13.0")
    assert list(pins.beside_torch(PINS)) == [f"{name}=={pin}" for name, pin in PINS.items()]
