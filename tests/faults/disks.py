# SPDX-License-Identifier: Apache-2.0
"""Run by test_disks.py in a mount namespace of its own: a training run whose disk fails at step 4.

unshare --map-root-user --mount python -m tests.faults.disks HOW FOLDER

A small tmpfs is mounted on FOLDER. After the failure the disk is mended and the run resumed. The
last line says how both ended, and which step's checkpoint was there between them.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

from pipa_fast import train
from pipa_fast.data import loader
from pipa_fast.training import checkpoint, trainer
from tests.faults.ranks import TINY
from tests.few import Few

SIZE = "48m"


def mount(*arguments: str) -> None:
    """Call mount(8)."""
    subprocess.run(["mount", *arguments], check=True)  # noqa: S607


def protect(folder: Path) -> None:
    """Lay a read-only view of the folder over it; what is open for writing forbids a remount."""
    mount("--bind", str(folder), str(folder))
    mount("-o", "remount,bind,ro", str(folder))


def unprotect(folder: Path) -> None:
    """Take it away again."""
    subprocess.run(["umount", str(folder)], check=True)  # noqa: S607


def fail(how: str, folder: Path) -> None:
    """Take from the run what it writes to."""
    if how == "full":
        with open(folder / "ballast", "wb") as file:
            file.write(bytes(shutil.disk_usage(folder).free - 4096))
    elif how == "readonly":
        protect(folder)
    elif how == "vanished":
        folder.joinpath("streets_source").rename(folder / "gone")


def mend(how: str, folder: Path) -> None:
    """Give it back."""
    if how == "full":
        (folder / "ballast").unlink()
    elif how == "readonly":
        unprotect(folder)
    elif how == "vanished":
        shutil.rmtree(folder / "streets_source", ignore_errors=True)
        (folder / "gone").rename(folder / "streets_source")


def main() -> None:
    """Fail, mend, resume, and say how it went."""
    how, name = sys.argv[1:]
    folder = Path(name)
    mount("-t", "tmpfs", "-o", f"size={SIZE}", "none", name)
    step, tried = trainer.Trainer._train_step, []

    def spoilt(self, batch):
        if self.iteration == 3 and not tried:
            self.writer.wait()
            tried.append(True)
            fail(how, folder)
        return step(self, batch)

    sys.argv = ["train", *TINY, "--run.dir", name, "--run.resume", "auto"]
    with (
        mock.patch.object(loader, "build_dataset", Few),
        mock.patch.object(trainer.Trainer, "_train_step", spoilt),
    ):
        if how == "readonly at start":
            protect(folder)
            first = train.main()
            unprotect(folder)
        else:
            first = train.main()
            mend(how, folder)
        state = checkpoint.load_newest(folder / "streets_source")
        second = train.main()
    print(json.dumps([first, None if state is None else state["iteration"], second]))


if __name__ == "__main__":
    main()
