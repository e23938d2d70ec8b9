"""What the installed ONNX Runtime does with few bits: found out by opening, or running, such a node.

Its registry lists MatMulNBits, but not for how many bits; releases differ (2 bits came after 1.23). It lists
GroupQueryAttention, whose integer cache 1.26 opens and cannot run (1.27 can).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from qcompile.backends.ort import Feed, open_session
from qcompile.ir.blocks import BlockSpec
from qcompile.ir.errors import ModelError

__all__ = ["has_bits", "has_integer_cache", "has_quantization"]

BLOCK = 32


FLOAT, INT8, INT32 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT8, onnx.TensorProto.INT32

_typed = helper.make_tensor_value_info


@lru_cache(maxsize=8)
def has_bits(bits: int) -> bool:
    """Whether a MatMulNBits with weights of ``bits`` bits opens here."""
    stored = BlockSpec(bits, BLOCK).storage
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
    return _able(
        node,
        [_typed("x", FLOAT, [1, BLOCK])],
        [_typed("y", FLOAT, [1, 1])],
        {"b": np.zeros((1, 1, BLOCK * stored // 8), np.uint8), "s": np.ones(1, np.float32)},
    )


@lru_cache(maxsize=8)
def has_quantization(opset: int) -> bool:
    """Whether QuantizeLinear of an opset runs here on int8: 1.23 opens opset 23, and has no kernel."""
    return _able(
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"]),
        [_typed("x", FLOAT, [1])],
        [_typed("y", INT8, [1])],
        {"scale": np.array(1, np.float32), "zero": np.array(0, np.int8)},
        opset=opset,
    )


@lru_cache(maxsize=1)
def has_integer_cache() -> bool:
    """Whether GroupQueryAttention runs here on a cache of int8, with a scale for each channel."""
    heads, width = 1, 8
    cache: list[str | int | None] = [1, heads, "tokens", width]
    read = ["x", "x", "x", "past", "past", "lengths", "total"]
    node = helper.make_node(
        "GroupQueryAttention",
        [*read, *[""] * 5, "scale", "scale"],
        ["y", "key", "value"],
        domain="com.microsoft",
        num_heads=heads,
        kv_num_heads=heads,
        k_quant_type="PER_CHANNEL",
        v_quant_type="PER_CHANNEL",
        kv_cache_bit_width=8,
    )
    return _able(
        node,
        [
            _typed("x", FLOAT, [1, 1, width]),
            _typed("past", INT8, cache),
            _typed("lengths", INT32, [1]),
            _typed("total", INT32, []),
        ],
        [_typed("y", FLOAT, None), _typed("key", INT8, None), _typed("value", INT8, None)],
        {"scale": np.ones((1, heads, 1, width), np.float32)},
        feed={
            "x": np.ones((1, 1, width), np.float32),
            "past": np.zeros((1, heads, 0, width), np.int8),
            "lengths": np.zeros(1, np.int32),
            "total": np.array(1, np.int32),
        },
    )


def _able(
    node: onnx.NodeProto,
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Mapping[str, npt.NDArray[Any]],
    *,
    opset: int = 17,
    feed: Feed | None = None,
) -> bool:
    """Whether a model of this node opens and, with ``feed``, runs."""
    held = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph([node], "probe", inputs, outputs, held)
    default = helper.make_opsetid("", opset)
    model = helper.make_model(
        graph,
        opset_imports=[default, helper.make_opsetid("com.microsoft", 1)],
        ir_version=max(8, helper.find_min_ir_version_for([default])),
    )
    try:
        session = open_session(model.SerializeToString(), threads=1)
        if feed is not None:
            session.run(feed)
    except ModelError:
        return False
    return True
