"""What a command is about: a model's file or an artifact's folder, with its samples and its float model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.artifact import MODEL, PORTABLE, Artifact, open_artifact
from qcompile.backends.ort import AS_WRITTEN, Session, open_session
from qcompile.data.inputs import Feed, InputSpec, input_specs
from qcompile.ir.cache import from_integers, read_pairs
from qcompile.ir.errors import ModelError, OutputError
from qcompile.ir.load import Loaded, load_model
from qcompile.ir.read import open_source, parse
from qcompile.passes.emulate_fp4 import emulate_fp4

__all__ = [
    "AS_WRITTEN",
    "Subject",
    "find_float_model",
    "open_specs",
    "open_subject",
    "runnable_form",
    "stored_samples",
]

REJECTED = "rejected"


@dataclass(frozen=True)
class Subject:
    """A model, or an artifact with what lies in its folder.

    Attributes:
        path: as the user gave it.
        model: the file that ONNX Runtime runs.
        layered: the file whose inner tensors have the float model's names (an artifact's portable
            form: the lowered one has integers inside).
        artifact: its manifest, None for a plain model.
        portable: the artifact is for a device; ``model`` shows its arithmetic here, not its speed.
        rejected: the artifact was not delivered, and ``model`` is what was turned down.
    """

    path: Path
    model: Path
    layered: Path
    artifact: Artifact | None = None
    portable: bool = False
    rejected: bool = False

    @property
    def name(self) -> str:
        """How messages call it: the folder's name, or the file's."""
        return self.path.resolve().name

    def open(self, **options: Any) -> Session:
        """A session; a portable model's Q/DQ nodes run as they are written, 4-bit floats emulated.

        Args:
            options: of ``qcompile.backends.ort.open_session``.
        """
        config = AS_WRITTEN if self.portable else None
        model = runnable_form(self.model) if self.portable else self.model
        return open_session(model, config=config, **options)

    def graph(self) -> Loaded:
        """The graph of ``layered`` as it runs here: 4-bit floats are emulated in a portable model."""
        loaded = load_model(self.layered)
        if self.portable:
            emulate_fp4(loaded.model)
        return loaded

    def report(self) -> dict[str, Any]:
        """report.json of an artifact.

        Raises:
            OutputError: a plain model has none, or it cannot be read.
        """
        if self.artifact is None:
            raise OutputError(
                f"'{self.path}' is a model; give the folder that `qcompile ... -o FOLDER` wrote"
            )
        try:
            return self.artifact.report
        except (OSError, ValueError) as e:
            raise OutputError(
                f"'{self.path / 'report.json'}' cannot be read ({e}); compile again"
            ) from e


def runnable_form(path: Path) -> Path | bytes:
    """A model's file, or where only TensorRT computes it the bytes of one that computes the same."""
    model = oir.load(path)
    if not emulate_fp4(model):
        return path
    return bytes(oir.to_proto(model).SerializeToString())


def open_subject(path: Path) -> Subject:
    """What lies at ``path``.

    Raises:
        ModelError: nothing is there.
        OutputError: a folder that is no artifact, or one without any model.
    """
    if not path.exists():
        raise ModelError(f"'{path}' does not exist; give a model.onnx or an artifact's folder")
    if not path.is_dir():
        return Subject(path, path, path)
    artifact = open_artifact(path)
    for folder, rejected in ((path, False), (path / REJECTED, True)):
        lowered, portable = folder / MODEL, folder / PORTABLE
        if lowered.is_file():
            layered = portable if portable.is_file() else lowered
            return Subject(path, lowered, layered, artifact, False, rejected)
        if portable.is_file():
            return Subject(path, portable, portable, artifact, True, rejected)
    raise OutputError(f"'{path}' holds neither {MODEL} nor {PORTABLE}; compile again")


def stored_samples(folder: Path, name: str = "sample_in.npz") -> list[Feed]:
    """The samples in an artifact's ``deploy/``; none where there is no such file.

    A cache in 8 bits becomes float, as a ``Session`` has it.
    """
    path = folder / "deploy" / name
    if not path.is_file():
        return []
    try:
        with np.load(path, allow_pickle=False) as stored:
            names = json.loads(bytes(stored["names"]).decode())
            count = int(stored["count"])
            found = [{n: stored[f"{i}_{j}"] for j, n in enumerate(names)} for i in range(count)]
    except (OSError, ValueError, KeyError, EOFError) as e:
        raise OutputError(f"'{path}' cannot be read ({e}); compile again") from e
    if not any(array.dtype == np.int8 for feed in found for array in feed.values()):
        return found
    scales = _cache_scales(folder / MODEL)
    return [
        {n: from_integers(a, scales[n]) if n in scales else a for n, a in feed.items()}
        for feed in found
    ]


def open_specs(model: Path) -> tuple[InputSpec, ...]:
    """What a session of ours must be fed; a cache in 8 bits is float there."""
    loaded = oir.load(model)
    cached = {pair.past for pair in read_pairs(loaded.metadata_props)}
    return tuple(
        replace(spec, dtype="float32") if spec.name in cached else spec
        for spec in input_specs(loaded)
    )


def _cache_scales(model: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Scales of caches in 8 bits, by the names of inputs and outputs."""
    if not model.is_file():
        return {}
    pairs = read_pairs(oir.load(model).metadata_props)
    return {name: pair.scale for pair in pairs for name in (pair.past, pair.present)}


def find_float_model(
    subject: Subject, given: Path | None, near: Iterable[Path] = ()
) -> Path | None:
    """The model that an artifact was compiled from: ``given``, else one of that name and hash nearby.

    Looked for in the working directory, beside the folder and in ``near``; None when it is not there.

    Raises:
        ModelError: ``given`` does not exist.
    """
    if given is not None:
        if not given.is_file():
            raise ModelError(f"--float '{given}' does not exist; give the original model.onnx")
        return given
    if subject.artifact is None:
        return None
    name = str(subject.report()["model"]["name"])
    expected = subject.artifact.manifest.get("inputs", {}).get("model")
    for folder in (Path(), subject.path.resolve().parent, *near):
        candidate = folder / name
        if candidate.is_file() and _sha256(candidate) == expected:
            return candidate
    return None


def _sha256(path: Path) -> str:
    """Over the model and its side files, as a compile records it; "" for what is no model."""
    try:
        opened = open_source(path)
        parse(opened)
    except ModelError:
        return ""
    return opened.sha256()
