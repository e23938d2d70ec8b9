"""Weights that are no numbers: found before they spoil a calibration."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.ir.errors import ModelError
from qcompile.ir.graph import subgraphs_of

__all__ = ["check_finite"]

_CHUNK = 1 << 22

_NEEDS_FINITE = frozenset(
    {
        "BatchNormalization",
        "Conv",
        "ConvTranspose",
        "Einsum",
        "GRU",
        "Gemm",
        "GroupNormalization",
        "InstanceNormalization",
        "LSTM",
        "LayerNormalization",
        "MatMul",
        "RNN",
    }
)
"""Readers whose result an infinite operand ruins. Elsewhere (masks, Clip) it has a meaning."""

_TAKES_NAN = frozenset({"Cast", "Equal", "Identity", "If", "IsNaN", "Loop", "Scan", "Where"})
"""Readers through which a NaN need not reach the result."""


def check_finite(model: oir.Model) -> None:
    """Check that no weight holds NaN, and none of a layer's weights Inf.

    -Inf in an attention mask and Inf as a limit of Clip are left alone.

    Raises:
        ModelError: names the tensor, the layer and how many elements are bad.
    """
    for value, tensor in _constants(model.graph):
        if not tensor.dtype.is_floating_point() or not tensor.size:
            continue
        readers = {use.node for use in value.uses()}
        nan, inf = _count(tensor)
        ruined = [n for n in readers if n.op_type in _NEEDS_FINITE] if inf else []
        ruined += [n for n in readers if n.op_type not in _TAKES_NAN] if nan else []
        if ruined:
            what = " and ".join(f"{n} {w}" for n, w in ((nan, "NaN"), (inf, "Inf")) if n)
            node = min(ruined, key=lambda n: n.name or "")
            raise ModelError(
                f"tensor '{value.name}' of node '{node.name}' ({node.op_type}) holds {what} among "
                f"{tensor.size} elements; the model was damaged or diverged in training, export "
                "it again"
            )


def _constants(graph: oir.Graph) -> Iterator[tuple[oir.Value, oir.TensorProtocol]]:
    for value in graph.initializers.values():
        if value.const_value is not None:
            yield value, value.const_value
    for node in graph:
        if node.op_type == "Constant" and "value" in node.attributes:
            attr = node.attributes["value"]
            if attr.type == oir.AttributeType.TENSOR:
                yield node.outputs[0], attr.as_tensor()
        for _, inner in subgraphs_of(node):
            yield from _constants(inner)


def _count(tensor: oir.TensorProtocol) -> tuple[int, int]:
    """How many elements are NaN, and how many infinite."""
    if tensor.dtype.bitwidth < 8:
        return 0, 0
    flat: npt.NDArray[np.generic] = tensor.numpy().reshape(-1)
    nan = inf = 0
    for start in range(0, flat.size, _CHUNK):
        piece = flat[start : start + _CHUNK]
        if piece.dtype.itemsize == 1:
            piece = piece.astype(np.float32)
        if not np.all(np.isfinite(piece)):
            bad = int(np.isnan(piece).sum())
            nan += bad
            inf += int((~np.isfinite(piece)).sum()) - bad
    return nan, inf
