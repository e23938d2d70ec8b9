"""What the installed ONNX Runtime does with few bits: found out by opening, or running, such a node.

Its registry lists MatMulNBits, but not for how many bits; releases differ (2 bits came after 1.23). It lists
GroupQueryAttention, whose integer cache 1.26 opens and cannot run (1.27 can).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import onnx
from onnx import helper, numpy_helper

from qcompile.backends.ort import open_session
from qcompile.ir.blocks import BlockSpec
from qcompile.ir.errors import ModelError

__all__ = ["has_bits", "has_integer_cache", "has_quantization"]

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


@lru_cache(maxsize=8)
def has_quantization(opset: int) -> bool:
    """Whether QuantizeLinear of an opset runs here on int8: 1.23 opens opset 23, and has no kernel."""
    node = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"])
    graph = helper.make_graph(
        [node],
        "probe",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.INT8, [1])],
        [
            numpy_helper.from_array(np.array(1, np.float32), "scale"),
            numpy_helper.from_array(np.array(0, np.int8), "zero"),
        ],
    )
    ir_version = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version
    )
    try:
        open_session(model.SerializeToString(), threads=1)
    except ModelError:
        return False
    return True


@lru_cache(maxsize=1)
def has_integer_cache() -> bool:
    """Whether GroupQueryAttention runs here on a cache of int8, with a scale for each channel."""
    heads, width = 1, 8
    cache: list[str | int | None] = [1, heads, "tokens", width]
    scale = numpy_helper.from_array(np.ones((1, heads, 1, width), np.float32), "scale")
    inputs = [
        *["x", "x", "x", "past", "past", "lengths", "total"],
        "",
        "",
        "",
        "",
        "",
        "scale",
        "scale",
    ]
    node = helper.make_node(
        "GroupQueryAttention",
        inputs,
        ["y", "key", "value"],
        domain="com.microsoft",
        num_heads=heads,
        kv_num_heads=heads,
        k_quant_type="PER_CHANNEL",
        v_quant_type="PER_CHANNEL",
        kv_cache_bit_width=8,
    )
    value, int8 = helper.make_tensor_value_info, onnx.TensorProto.INT8
    graph = helper.make_graph(
        [node],
        "probe",
        [
            value("x", onnx.TensorProto.FLOAT, [1, 1, width]),
            value("past", int8, cache),
            value("lengths", onnx.TensorProto.INT32, [1]),
            value("total", onnx.TensorProto.INT32, []),
        ],
        [
            value("y", onnx.TensorProto.FLOAT, None),
            value("key", int8, None),
            value("value", int8, None),
        ],
        [scale],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    feed = {
        "x": np.ones((1, 1, width), np.float32),
        "past": np.zeros((1, heads, 0, width), np.int8),
        "lengths": np.zeros(1, np.int32),
        "total": np.array(1, np.int32),
    }
    try:
        open_session(model.SerializeToString(), threads=1).run(feed)
    except ModelError:
        return False
    return True
