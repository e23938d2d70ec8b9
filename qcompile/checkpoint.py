"""Matrices that are done, kept on disk until the compile is: what was killed goes on from there.

They are also where the rest of the compile reads them from, mapped: memory holds one matrix at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.ir.blocks import BlockSpec, BlockWeight, PackedWeight
from qcompile.ir.codebook import CodebookWeight
from qcompile.ir.errors import OutputError

__all__ = ["Checkpoint", "Kept", "claim", "progress_folder", "tell_matrices"]

KEY, ABOUT = "key.json", "about.json"

Kept = PackedWeight | CodebookWeight


def progress_folder(output: Path) -> Path:
    """Where a compile into ``output`` keeps what it has finished."""
    return output.resolve().with_name(f".{output.name}.progress")


def claim(folder: Path, key: Mapping[str, Any]) -> None:
    """Make ``folder`` this compile's: another compile's files are thrown away.

    Raises:
        OutputError: it cannot be written.
    """
    text = json.dumps(dict(key), sort_keys=True, default=str)
    found = folder / KEY
    try:
        if not found.is_file() or found.read_text(encoding="utf-8") != text:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            found.write_text(text, encoding="utf-8", newline="\n")
    except OSError as e:
        raise OutputError(f"{folder} cannot be written: {e.strerror or e}") from e


@contextmanager
def tell_matrices(folder: Path) -> Iterator[None]:
    """An interruption within the block says how many matrices are kept."""
    try:
        yield
    except KeyboardInterrupt as e:
        done = len(list(folder.glob(f"*/*/{ABOUT}")))
        if done:
            e.kept = (folder, [f"{done} rounded matrices"])  # type: ignore[attr-defined]
        raise


class Checkpoint:
    """A folder of matrices that belong to one compile; another compile's are thrown away.

    A matrix is a folder that is written under another name, then renamed, so that it is whole or not
    there, whenever the process is killed.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], part: str = "") -> None:
        """Open or begin.

        Args:
            folder: made if it is not there.
            key: what the integers depend on; a folder with another key is emptied.
            part: keeps attempts of one compile apart (the precisions asked for).
        """
        self.root = folder
        self.folder = folder / hashlib.sha256(part.encode()).hexdigest()[:12]
        claim(folder, key)
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as e:
            raise OutputError(f"{folder} cannot be written: {e.strerror or e}") from e

    def load(self, name: str) -> tuple[Kept, dict[str, Any]] | None:
        """A matrix, mapped, and what was said of it; None when it is not done."""
        place = self._place(name)
        if not (place / ABOUT).is_file():
            return None
        about = json.loads((place / ABOUT).read_text(encoding="utf-8"))
        stored = about.pop("stored")

        def mapped(part: str) -> npt.NDArray[Any]:
            return np.asarray(np.load(place / f"{part}.npy", mmap_mode="r", allow_pickle=False))

        if "spec" not in stored:
            weight = CodebookWeight(
                stored["width"], stored["block"], mapped("data"), mapped("scale")
            )
            return weight, about
        spec = BlockSpec(**stored["spec"])
        zeros = None if spec.symmetric else mapped("zeros")
        return PackedWeight(spec, stored["width"], mapped("data"), mapped("scale"), zeros), about

    def save(
        self, name: str, weight: BlockWeight | Kept, about: Mapping[str, Any]
    ) -> tuple[Kept, dict[str, Any]]:
        """Store a matrix and give it back as ``load`` does.

        Raises:
            OutputError: the disk is full, or the folder cannot be written.
        """
        place = self._place(name)
        draft = place.with_suffix(f".{os.getpid()}.part")
        arrays: dict[str, npt.NDArray[Any] | None] = {"data": weight.packed()}
        stored: dict[str, Any] = {"width": weight.width}
        if isinstance(weight, CodebookWeight):
            arrays["scale"] = weight.absmax
            stored["block"] = weight.block
        else:
            arrays |= {"scale": weight.scale, "zeros": weight.packed_zero()}
            stored["spec"] = {
                k: getattr(weight.spec, k) for k in ("bits", "block", "symmetric", "positive")
            }
        try:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            for part, array in arrays.items():
                if array is not None:
                    np.save(draft / f"{part}.npy", array, allow_pickle=False)
            text = json.dumps({**about, "stored": stored})
            (draft / ABOUT).write_text(text, encoding="utf-8", newline="\n")
            draft.rename(place)
        except OSError as e:
            raise OutputError(f"{place} cannot be written: {e.strerror or e}") from e
        kept = self.load(name)
        if kept is None:
            raise OutputError(f"{place} was taken away while it was written")
        return kept

    def remove(self) -> None:
        """The compile is done."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _place(self, name: str) -> Path:
        return self.folder / hashlib.sha256(name.encode()).hexdigest()[:24]
