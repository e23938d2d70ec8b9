"""The float model inside a portable Q/DQ model: the same layers under the same ids, nothing rounded.

Before:  x -> Q -> DQ -> Conv(DQ(W_quantized)) -> Q -> DQ -> y
After:   x -> Conv(W on its grid) -> y

The weights stay what they were rounded to, which matters to accuracy and not to speed: this is what
a device measures costs on when an artifact is all it was given.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.ir.errors import ModelError
from qcompile.ir.graph import (
    add_initializer,
    attribute,
    constant,
    drop_unused,
    origin,
    replace_value,
)

__all__ = ["float_form"]

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def float_form(model: oir.Model) -> oir.Model:
    """A copy of a Q/DQ model without its Q and DQ; integer constants become float ones.

    Raises:
        ModelError: a DequantizeLinear reads integers that neither a constant nor a QuantizeLinear
            writes.
    """
    copy = model.clone()
    for node in list(copy.graph):
        if node.op_type != _DEQUANTIZE or node.domain not in ("", "ai.onnx"):
            continue
        source, written = node.inputs[0], node.outputs[0]
        maker = source.producer() if source is not None else None
        if maker is not None and maker.op_type == _QUANTIZE and maker.inputs[0] is not None:
            replace_value(written, maker.inputs[0])
            continue
        stored = constant(source)
        if stored is None:
            name = "" if source is None else source.name
            raise ModelError(
                f"node '{origin(node) or node.name}' dequantizes '{name}', which is neither a constant "
                "nor written by a QuantizeLinear; give a portable model as qcompile writes it "
                "(model.qdq.onnx)"
            )
        replace_value(written, add_initializer(copy.graph, f"{written.name}_float", _real(node)))
    drop_unused(copy)
    return copy


def _real(node: oir.Node) -> npt.NDArray[np.float32]:
    """The values of a DequantizeLinear whose inputs are constants."""
    arrays = [constant(value) for value in node.inputs]
    stored, scale = arrays[0], arrays[1]
    if stored is None or scale is None:
        raise ModelError(f"node '{node.name}' has a scale that is no constant")
    zero = arrays[2] if len(arrays) > 2 else None
    whole = stored.astype(np.float32)
    axis = int(str(attribute(node, "axis", 1)))
    block = int(str(attribute(node, "block_size", 0)))
    factor = _spread(scale.astype(np.float32), whole.shape, axis, block)
    if zero is not None:
        whole = whole - _spread(zero.astype(np.float32), whole.shape, axis, block)
    return np.asarray(whole * factor, np.float32)


def _spread(
    parameter: npt.NDArray[np.float32], shape: tuple[int, ...], axis: int, block: int
) -> npt.NDArray[np.float32]:
    """A scale or zero point in a form that broadcasts to ``shape``."""
    if parameter.ndim == 0 or parameter.size == 1:
        return parameter.reshape(())
    axis %= len(shape)
    if block:
        return np.repeat(parameter, block, axis).take(range(shape[axis]), axis)
    return parameter.reshape([-1 if i == axis else 1 for i in range(len(shape))])
