"""Whether the installed ONNX Runtime multiplies with weights of so many bits: by opening such a node.

Its registry lists MatMulNBits, but not for how many bits; releases differ (2 bits came after 1.23).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import onnx
from onnx import helper, numpy_helper

from qcompile.backends.ort import open_session
from qcompile.ir.blocks import BlockSpec
from qcompile.ir.errors import ModelError

__all__ = ["has_bits"]

BLOCK = 32


@lru_cache(maxsize=8)
def has_bits(bits: int) -> bool:
    """Whether a MatMulNBits with weights of ``bits`` bits opens here."""
    stored = BlockSpec(bits, BLOCK).storage
    packed = np.zeros((1, 1, BLOCK * stored // 8), np.uint8)
    node = helper.make_node(
        "MatMulNBits",
        ["x", "b", "s"],
        ["y"],
        domain="com.microsoft",
        K=BLOCK,
        N=1,
        bits=stored,
        block_size=BLOCK,
    )
    graph = helper.make_graph(
        [node],
        "probe",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, BLOCK])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 1])],
        [
            numpy_helper.from_array(packed, "b"),
            numpy_helper.from_array(np.ones(1, np.float32), "s"),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    try:
        open_session(model.SerializeToString(), threads=1)
    except ModelError:
        return False
    return True
