"""Multiply-accumulates that executed kernels do, for a model of any tool: no shape inference needed."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from qcompile.backends.ort_owners import Owners, base
from qcompile.backends.ort_profile import Kernel
from qcompile.backends.ort_tags import Source, Tagged

__all__ = ["node_macs"]

_WEIGHT = {"QLinearConv": 3}
"""Position of the filters where it is not 1."""

_KEEPS_SHAPE = frozenset({"Cast", "DequantizeLinear", "Identity", "QuantizeLinear"})


def node_macs(tagged: Tagged, owners: Owners) -> dict[int, int]:
    """Index of each Conv, MatMul, Gemm or recurrent node, in float or integer form -> its MACs.

    Taken from the shapes that the kernels saw; 0 where a shape could not be found.
    """
    maker = {name: s for s in tagged.sources for name in s.outputs if name}
    found = {}
    for index, at in owners.owner.items():
        source = tagged.sources[index]
        kind = base(source.op_type)
        kernel = owners.kernels[at]
        if kind in ("Conv", "ConvTranspose"):
            found[index] = _conv(source, kernel, tagged, maker, transposed=kind != "Conv")
        elif kind in ("MatMul", "Gemm"):
            found[index] = _product(kernel)
        elif kind in ("LSTM", "GRU", "RNN"):
            found[index] = _recurrent(source, kernel, tagged, maker)
    return found


def _shape(
    name: str, tagged: Tagged, maker: Mapping[str, Source], depth: int = 0
) -> tuple[int, ...] | None:
    """Shape of a constant, also behind what keeps it."""
    if name in tagged.shapes:
        return tagged.shapes[name]
    source = maker.get(name)
    if source is None or source.op_type not in _KEEPS_SHAPE or depth > 8:
        return None
    return _shape(source.inputs[0], tagged, maker, depth + 1)


def _conv(
    source: Source, kernel: Kernel, tagged: Tagged, maker: Mapping[str, Source], *, transposed: bool
) -> int:
    position = _WEIGHT.get(source.op_type, 1)
    weight = (
        _shape(source.inputs[position], tagged, maker) if len(source.inputs) > position else None
    )
    if weight is None and len(kernel.read) > position:
        weight = kernel.read[position].shape  # not constant, so the kernel reads it as it is
    place = kernel.read if transposed else kernel.written
    return place[0].elements * prod(weight[1:]) if weight and place else 0


def _product(kernel: Kernel) -> int:
    if not kernel.read or not kernel.written or not kernel.read[0].shape:
        return 0
    return kernel.written[0].elements * kernel.read[0].shape[-1]


def _recurrent(source: Source, kernel: Kernel, tagged: Tagged, maker: Mapping[str, Source]) -> int:
    weights = [_shape(name, tagged, maker) for name in source.inputs[1:3]]
    if not kernel.read or len(kernel.read[0].shape) < 2:
        return 0
    steps = prod(kernel.read[0].shape[:2])
    return steps * sum(prod(shape) for shape in weights if shape)
