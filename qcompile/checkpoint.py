"""Matrices that are done, kept on disk until the compile is: what was killed goes on from there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.ir.blocks import BlockSpec, BlockWeight

__all__ = ["Checkpoint"]

KEY = "key.json"


class Checkpoint:
    """A folder of matrices that belong to one compile; another compile's are thrown away.

    A file is written under another name, then renamed, so that it is whole or not there.
    """

    def __init__(self, folder: Path | None, key: Mapping[str, Any]) -> None:
        self.folder = folder
        self._names: dict[str, int] = {}
        self._fresh: list[tuple[Path, Path]] = []
        if folder is None:
            return
        text = json.dumps(dict(key), sort_keys=True, default=str)
        found = folder / KEY
        if not found.is_file() or found.read_text(encoding="utf-8") != text:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            found.write_text(text, encoding="utf-8", newline="\n")

    def load(self, name: str) -> tuple[BlockWeight, dict[str, Any]] | None:
        """A matrix and what was said of it, None when it is not done."""
        path = self._path(name)
        if path is None or not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as stored:
            about = json.loads(bytes(stored["about"]).decode())
            spec = BlockSpec(**about.pop("spec"))
            zero = stored["zero"] if "zero" in stored.files else None
            weight = BlockWeight(
                spec, about.pop("width"), stored["integers"], stored["scale"], zero
            )
        return weight, about

    def save(self, name: str, weight: BlockWeight, about: Mapping[str, Any]) -> None:
        """Store a matrix; it counts once ``flush`` was called."""
        path = self._path(name)
        if path is None:
            return
        spec = {k: getattr(weight.spec, k) for k in ("bits", "block", "symmetric")}
        text = json.dumps({**about, "spec": spec, "width": weight.width})
        arrays: dict[str, Any] = {"integers": weight.integers, "scale": weight.scale}
        if weight.zero is not None:
            arrays["zero"] = weight.zero
        arrays["about"] = np.frombuffer(text.encode(), np.uint8)
        draft = path.with_suffix(".draft")
        with draft.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        self._fresh.append((draft, path))

    def flush(self) -> None:
        """Let everything stored so far count."""
        for draft, path in self._fresh:
            draft.replace(path)
        self._fresh.clear()

    def remove(self) -> None:
        """The compile is done."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str) -> Path | None:
        if self.folder is None:
            return None
        index = self._names.setdefault(name, len(self._names))
        return self.folder / f"{index}.npz"
