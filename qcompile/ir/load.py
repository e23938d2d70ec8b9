"""The entry: from a user's file, bytes or model to a clean onnx_ir model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as oir

from qcompile.ir.errors import ModelError, PassError
from qcompile.ir.finite import check_finite
from qcompile.ir.functions import inline_functions
from qcompile.ir.limits import fit_runtime
from qcompile.ir.notes import Note
from qcompile.ir.read import Source, open_source, parse
from qcompile.ir.save import model_bytes
from qcompile.ir.shapes import infer_shapes
from qcompile.ir.tidy import (
    assign_origins,
    check_values,
    describe,
    fix_weight_inputs,
    rename_shadows,
    sort_nodes,
)
from qcompile.ir.verify import verify

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
    fix_weights: bool | None = None,
    runtime_opset_limit: int | None = None,
    runtime_ir_limit: int | None = None,
) -> Loaded:
    """A clean model whose big weights stay mapped from where they lie.

    Opset and IR version stay the input's, unless the runtime's limits are lower.

    Args:
        source: path, serialized model, proto, or an onnx_ir model (which is not changed).
        base_dir: folder of the side files when ``source`` is no path.
        fix_weights: take weights that are also graph inputs (overridable defaults) as constants;
            None: if all are, for then an exporter listed them.
        runtime_opset_limit: newest opset that the runtime opens.
        runtime_ir_limit: newest IR version that the runtime opens.

    Raises:
        ModelError: not ONNX, invalid, incomplete, or newer than the runtime.
    """
    opened = open_source(model_bytes(source) if isinstance(source, oir.Model) else source, base_dir)
    try:
        return _load(opened, fix_weights, runtime_opset_limit, runtime_ir_limit)
    except ModelError as e:
        # one line that names the file, whoever found the fault
        text = " ".join(str(e).split())
        raise ModelError(text if opened.name in text else f"{opened.name}: {text}") from e
    except MemoryError:
        raise
    except Exception as e:
        cause: BaseException = e
        while cause.__cause__ is not None:
            cause = cause.__cause__
        text = " ".join(f"{type(cause).__name__}: {cause}".split())[:300]
        raise ModelError(f"{opened.name} is not a valid ONNX model ({text})") from e


def _load(
    opened: Source, fix_weights: bool | None, opset_limit: int | None, ir_limit: int | None
) -> Loaded:
    model, notes = parse(opened)
    check_values(model)
    notes += fix_weight_inputs(model, fix_weights)
    notes += sort_nodes(model)
    notes += assign_origins(model.graph)
    if model.functions:
        notes += inline_functions(model)
        notes += sort_nodes(model)
    notes += rename_shadows(model)
    notes += fit_runtime(model, opset_limit, ir_limit)
    check_finite(model)
    notes += infer_shapes(model)
    try:
        verify(model)
    except PassError as e:
        raise ModelError(f"not a valid ONNX model: {e}") from e
    notes += describe(model)
    return Loaded(model, tuple(notes), opened.sha256(), opened.path)
