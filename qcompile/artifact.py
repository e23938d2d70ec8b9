"""The artifact folder: written under a temporary name, renamed when complete, hashed, never half-done."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompile.ir.errors import OutputError

__all__ = [
    "LOCK",
    "MANIFEST",
    "MODEL",
    "PORTABLE",
    "Artifact",
    "file_sha256",
    "new_artifact",
    "open_artifact",
    "record_file",
    "writable",
]

MANIFEST = "manifest.json"
MODEL = "model.onnx"
PORTABLE = "model.qdq.onnx"
LOCK = "qcompile.lock"
FORMAT = 1


def file_sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class Artifact:
    """A finished folder.

    Attributes:
        path: the folder.
        manifest: what ``manifest.json`` holds.
    """

    path: Path
    manifest: Mapping[str, Any]

    @property
    def model(self) -> Path:
        """The lowered model; absent when nothing was delivered."""
        return self.path / MODEL

    @property
    def report(self) -> dict[str, Any]:
        """The content of report.json."""
        loaded: dict[str, Any] = json.loads((self.path / "report.json").read_text(encoding="utf-8"))
        return loaded

    def damaged(self) -> list[str]:
        """Files of the manifest that are missing or changed, each with what is wrong."""
        wrong = []
        for name, expected in sorted(self.manifest["files"].items()):
            file = self.path / name
            if not file.is_file():
                wrong.append(f"{name} is missing")
            elif file_sha256(file) != expected:
                wrong.append(f"{name} was changed since it was compiled")
        return wrong


def open_artifact(path: Path) -> Artifact:
    """Read the manifest of a folder that qcompile wrote.

    Raises:
        OutputError: no such folder, or not one of ours.
    """
    manifest = _read_manifest(path)
    if manifest is None:
        found = "holds no manifest.json of qcompile" if path.is_dir() else "does not exist"
        raise OutputError(f"'{path}' {found}; give the folder that `qcompile ... -o FOLDER` wrote")
    return Artifact(path, manifest)


def _read_manifest(path: Path) -> dict[str, Any] | None:
    try:
        loaded = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(loaded, dict) or loaded.get("format") != FORMAT or "qcompile" not in loaded:
        return None
    return loaded


def writable(path: Path, force: bool) -> None:
    """Check, before any work, that ``path`` may become an artifact folder.

    Raises:
        OutputError: it exists and is not ours (and not empty), or its parent cannot be written.
    """
    if path.exists() and not path.is_dir():
        raise OutputError(f"'{path}' is a file; give a folder with -o")
    if path.is_dir() and any(path.iterdir()) and _read_manifest(path) is None and not force:
        raise OutputError(
            f"'{path}' exists and was not written by qcompile; choose another folder with -o, "
            "or pass --force, which moves it aside"
        )
    parent = path.resolve().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as e:
        raise OutputError(
            f"'{parent}' cannot be written ({e.strerror or e}); give another -o"
        ) from e


@contextmanager
def new_artifact(path: Path, force: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its place when the block ends without an error.

    An older artifact of ours is replaced in one rename; a foreign folder (``force``) is moved aside to
    ``NAME.bak``, ``NAME.bak-2``, ...

    Raises:
        OutputError: the disk is full or cannot be written; nothing half-written is left behind.
    """
    writable(path, force)
    path = path.resolve()
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield work
        _replace(work, path)
    except OSError as e:
        reason = "the disk is full" if e.errno == errno.ENOSPC else f"{e.strerror or e}"
        raise OutputError(f"'{path}' cannot be written: {reason}; nothing was changed there") from e
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _replace(work: Path, path: Path) -> None:
    if os.name == "posix":
        umask = os.umask(0)
        os.umask(umask)
        work.chmod(0o777 & ~umask)
    if not path.exists():
        work.rename(path)
        return
    if not any(path.iterdir()):
        path.rmdir()
        work.rename(path)
        return
    ours = _read_manifest(path) is not None
    aside = _aside(path) if not ours else path.with_name(f"{work.name}.old")
    path.rename(aside)
    try:
        work.rename(path)
    except OSError:
        aside.rename(path)
        raise
    if ours:
        shutil.rmtree(aside, ignore_errors=True)


def _aside(path: Path) -> Path:
    count = 1
    while True:
        candidate = path.with_name(f"{path.name}.bak" + ("" if count == 1 else f"-{count}"))
        if not candidate.exists():
            return candidate
        count += 1


def write_manifest(folder: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write manifest.json with the hash of every file that lies in ``folder``; returns it."""
    files = {
        file.relative_to(folder).as_posix(): file_sha256(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }
    manifest = {"format": FORMAT, **content, "files": files}
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8", newline="\n")
    return manifest


def record_file(folder: Path, name: str) -> None:
    """Renew the hash of a file that was made anew; a folder without our manifest stays as it is."""
    manifest = _read_manifest(folder)
    if manifest is not None:
        manifest["files"][name] = file_sha256(folder / name)
        text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
        (folder / MANIFEST).write_text(text, encoding="utf-8", newline="\n")
