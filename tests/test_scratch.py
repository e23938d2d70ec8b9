"""Temporary folders: gone at the end, and gone later where the end was a kill."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from qcompile.scratch import remove_abandoned, scratch_folder, scratch_root

HOLDS = """import sys
from qcompile.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "spill").write_text("x")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def other_process(folder: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that holds a scratch folder, and the folder of all it holds."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDS],
        env={**os.environ, "TMPDIR": str(folder), "TEMP": str(folder), "TMP": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    return child, Path(child.stdout.readline().strip()).parent


def age(folder: Path) -> None:
    os.utime(folder, (0, 0))


def end(child: subprocess.Popen[str], kill: bool) -> None:
    if kill:
        child.kill()
    child.communicate()


def test_a_folder_is_gone_afterwards(temporary: Path) -> None:
    with scratch_folder() as one, scratch_folder() as two:
        assert one.parent == two.parent == scratch_root() and one != two
        assert one.parent.parent == temporary
    assert not one.exists() and not two.exists()


def test_a_process_that_ends_leaves_nothing(temporary: Path) -> None:
    child, root = other_process(temporary)
    assert root.is_dir() and root.parent == temporary
    end(child, kill=False)
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_left_is_removed(temporary: Path) -> None:
    child, root = other_process(temporary)
    end(child, kill=True)
    assert list(root.glob("*/spill")), "a killed process removes nothing"
    assert remove_abandoned() == [], "too young to be sure that nobody is just beginning"
    age(root)
    assert remove_abandoned() == [root]
    assert not root.exists()


def test_what_a_living_process_holds_stays(temporary: Path) -> None:
    child, root = other_process(temporary)
    try:
        age(root)
        assert remove_abandoned() == []
        assert list(root.glob("*/spill"))
    finally:
        end(child, kill=True)


def test_what_others_named_alike_stays(temporary: Path) -> None:
    for name in ("qcompile-notes", "qcompile-file"):
        (temporary / name).mkdir()
        (temporary / name / "mine").write_text("x")
        age(temporary / name)
    assert remove_abandoned() == []
    assert len(list(temporary.glob("*/mine"))) == 2
