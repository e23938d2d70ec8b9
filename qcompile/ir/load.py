"""The entry: from a user's file, bytes or model to a clean onnx_ir model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as oir

from qcompile.ir.notes import Note
from qcompile.ir.read import open_source, parse
from qcompile.ir.save import model_bytes
from qcompile.ir.shapes import infer_shapes
from qcompile.ir.tidy import assign_origins

__all__ = ["Loaded", "load_model"]


@dataclass(frozen=True)
class Loaded:
    """A model ready for the passes.

    Attributes:
        model: sorted, functions inlined, shapes inferred, every node with its origin id.
        notes: what was changed, found or left alone while loading.
        sha256: over the model's bytes and its side files.
        source: the file, None for bytes and protos.
    """

    model: oir.Model
    notes: tuple[Note, ...]
    sha256: str
    source: Path | None


def load_model(
    source: str | Path | bytes | onnx.ModelProto | oir.Model,
    *,
    base_dir: Path | None = None,
    runtime_opset_limit: int | None = None,
    runtime_ir_limit: int | None = None,
) -> Loaded:
    """A clean model whose big weights stay mapped from where they lie.

    Args:
        source: path, serialized model, proto, or an onnx_ir model (which is not changed).
        base_dir: folder of the side files when ``source`` is no path.
        runtime_opset_limit: newest opset that the runtime opens.
        runtime_ir_limit: newest IR version that the runtime opens.

    Raises:
        ModelError: not ONNX, invalid, incomplete, or newer than the runtime.
    """
    opened = open_source(model_bytes(source) if isinstance(source, oir.Model) else source, base_dir)
    model, notes = parse(opened)
    model.graph.sort()
    notes += assign_origins(model.graph)
    notes += infer_shapes(model)
    return Loaded(model, tuple(notes), opened.sha256(), opened.path)
