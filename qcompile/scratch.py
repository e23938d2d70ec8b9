"""Temporary folders, all inside one of the process; what a killed process left is removed later.

The process holds a lock on a file in its folder, which the system takes back however it ends. Whoever
compiles next removes folders of the same user whose lock is free. A process that has made its folder
but not locked it yet is protected by the folder's age.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["remove_abandoned", "scratch_folder", "scratch_root"]

_PREFIX = "qcompile-"
_LOCK = "in-use.lock"
_YOUNG_S = 3600.0
"""Age up to which a folder is left alone even if nobody holds its lock, in seconds."""

_roots: dict[tuple[int, str], tuple[Path, FileLock]] = {}


def scratch_root() -> Path:
    """The folder of this process, for what must outlive the function that makes it."""
    # a forked child must not remove its parent's at its end, and TMPDIR may be changed by a caller
    key = os.getpid(), tempfile.gettempdir()
    held = _roots.get(key)
    if held is None or not held[0].is_dir():
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = FileLock(folder / _LOCK, thread_local=False)
        lock.acquire()
        held = _roots[key] = folder, lock
        atexit.register(_leave, key)
    return held[0]


def _leave(key: tuple[int, str]) -> None:
    if key[0] != os.getpid() or key not in _roots:
        return
    folder, lock = _roots.pop(key)
    lock.release()
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder that is gone afterwards."""
    # what a session still maps cannot be removed on Windows; that is no reason to fail
    with tempfile.TemporaryDirectory(dir=scratch_root(), ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def remove_abandoned() -> list[Path]:
    """Remove the folders of processes that were killed; which those were."""
    removed = []
    for folder in sorted(Path(tempfile.gettempdir()).glob(f"{_PREFIX}*")):
        if _is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
    return removed


def _is_abandoned(folder: Path) -> bool:
    lock = folder / _LOCK
    try:
        found = folder.lstat()
        mine = not hasattr(os, "getuid") or found.st_uid == os.getuid()
        if not mine or time.time() - found.st_mtime < _YOUNG_S or not lock.is_file():
            return False
        with FileLock(lock, timeout=0):
            return True
    except (OSError, Timeout):  # somebody holds it, or removes it at this moment
        return False
