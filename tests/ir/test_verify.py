"""What a graph must keep after every pass: each invariant, kept and broken."""

from __future__ import annotations

import onnx_ir as oir
import pytest
from onnx import parser

from qcompile.ir.errors import PassError
from qcompile.ir.verify import verify, verify_structure


def model(body: str, opset: int = 21, inputs: str = "float[2,3,4] x") -> oir.Model:
    text = f'<ir_version: 10, opset_import: ["" : {opset}]>\n'
    return oir.from_proto(parser.parse_model(f"{text}g ({inputs}) => (float[A,B,C] y) {body}"))


VALID = {
    "per_tensor": (
        10,
        "<float s = {0.5}, uint8 z = {3}> { q = QuantizeLinear(x, s, z) y = "
        "DequantizeLinear(q, s, z) }",
    ),
    "no_zero_point": (
        10,
        "<float s = {0.5}> { q = QuantizeLinear(x, s) y = DequantizeLinear(q, s) }",
    ),
    "one_element_scale": (
        10,
        "<float[1] s = {0.5}, uint8 z = {3}> { q = QuantizeLinear(x, s, z) y = "
        "DequantizeLinear(q, s, z) }",
    ),
    "per_channel": (
        13,
        "<int8[2,2,1] w = {1,2,3,4}, float[2] s = {0.5,1}, int8[2] z = {0,0}> { y = "
        "DequantizeLinear<axis=1>(w, s, z) }",
    ),
    "negative_axis": (
        13,
        "<int8[2,2,1] w = {1,2,3,4}, float[1] s = {0.5}> { y = DequantizeLinear<axis=-3>(w, s) }",
    ),
    "int32_bias": (
        13,
        "<int32[2,1,1] w = {1,2}, float[2] s = {0.5,1}, int32[2] z = {0,0}> { y = "
        "DequantizeLinear<axis=0>(w, s, z) }",
    ),
    "blocks": (
        21,
        "<int8[2,4,1] w = {1,2,3,4,5,6,7,8}, float[2,2,1] s = {1,2,3,4}> { y = "
        "DequantizeLinear<axis=1,block_size=2>(w, s) }",
    ),
    "computed_scale": (
        13,
        "{ s = ReduceMax<keepdims=0>(x) q = QuantizeLinear(x, s) y = DequantizeLinear(q, s) }",
    ),
    "sixteen_bit": (
        21,
        "<float s = {0.5}, uint16 z = {3}> { q = QuantizeLinear(x, s, z) y = "
        "DequantizeLinear(q, s, z) }",
    ),
}


@pytest.mark.parametrize("name", VALID)
def test_valid_qdq(name: str) -> None:
    opset, body = VALID[name]
    verify(model(body, opset))


BROKEN = {
    "zero": (
        "<float s = {0}> { q = QuantizeLinear(x, s) y = DequantizeLinear(q, s) }",
        21,
        "scale 's' is not positive",
    ),
    "negative": (
        "<float s = {-1}> { q = QuantizeLinear(x, s) y = DequantizeLinear(q, s) }",
        21,
        "scale 's' is not positive",
    ),
    "one_zero": (
        "<int8[2,2,1] w = {1,2,3,4}, float[2] s = {0.5,0}> { y = DequantizeLinear<axis=1>(w, s) }",
        21,
        "scale 's' is not positive",
    ),
    "old_opset": (
        "<int8[2,2,1] w = {1,2,3,4}, float[2] s = {0.5,1}> { y = DequantizeLinear<axis=1>(w, s) }",
        12,
        "has 2 scales, which needs opset 13",
    ),
    "count": (
        "<int8[2,2,1] w = {1,2,3,4}, float[3] s = {0.5,1,1}> { y = "
        "DequantizeLinear<axis=1>(w, s) }",
        21,
        r"scales of shape \(3,\) do not fit 'w', which has 2 channels along axis 1",
    ),
    "axis": (
        "<int8[2,2,1] w = {1,2,3,4}, float[2] s = {0.5,1}> { y = DequantizeLinear<axis=3>(w, s) }",
        21,
        "axis 3 is out of range for 'w' of rank 3",
    ),
    "default_axis": (
        "<int8[4] w = {1,2,3,4}, float[4] s = {1,1,1,1}> { y = DequantizeLinear(w, s) }",
        21,
        "axis 1 is out of range",
    ),
    "zero_shape": (
        "<int8[2,2,1] w = {1,2,3,4}, float[2] s = {0.5,1}, int8 z = {0}> { y = "
        "DequantizeLinear<axis=1>(w, s, z) }",
        21,
        r"zero point 'z' has shape \(\), its scale \(2,\)",
    ),
    "zero_dtype": (
        "<int8[2,1,1] w = {1,2}, float s = {0.5}, uint8 z = {0}> { y = DequantizeLinear(w, s, z) }",
        21,
        "zero point 'z' is UINT8, 'w' is INT8",
    ),
    "int32_zero": (
        "<int32[2,1,1] w = {1,2}, float s = {0.5}, int32 z = {1}> { y = "
        "DequantizeLinear(w, s, z) }",
        21,
        "zero point 'z' of an int32 tensor is not 0",
    ),
    "sixteen_bit": (
        "<float s = {0.5}, uint16 z = {3}> { q = QuantizeLinear(x, s, z) y = "
        "DequantizeLinear(q, s, z) }",
        17,
        "UINT16 needs opset 21",
    ),
    "blocks": (
        "<int8[2,4,1] w = {1,2,3,4,5,6,7,8}, float[2,3,1] s = {1,2,3,4,5,6}> { y = "
        "DequantizeLinear<axis=1,block_size=2>(w, s) }",
        21,
        "4 elements in blocks of 2 along axis 1 need 2",
    ),
    "old_blocks": (
        "<int8[2,4,1] w = {1,2,3,4,5,6,7,8}, float[2,2,1] s = {1,2,3,4}> { y = "
        "DequantizeLinear<axis=1,block_size=2>(w, s) }",
        17,
        "blocks, which need opset 21",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_qdq(name: str) -> None:
    body, opset, words = BROKEN[name]
    with pytest.raises(PassError, match=words) as caught:
        verify(model(body, opset))
    assert "node '" in str(caught.value)


def test_sixteen_bits_of_the_runtimes_own_operator_need_no_opset() -> None:
    found = model(VALID["sixteen_bit"][1], 17)
    for node in found.graph:
        node.domain = "com.microsoft"
    verify(found)


def test_qdq_within_a_branch_is_verified() -> None:
    body = """{ y = If (c) <
        then_branch = t () => (float[A,B,C] a)
            <float s = {0}> { q = QuantizeLinear(x, s) a = DequantizeLinear(q, s) },
        else_branch = e () => (float[A,B,C] b) { b = Abs(x) }> }"""
    with pytest.raises(PassError, match="scale 's'"):
        verify(model(body, inputs="float[2,3,4] x, bool c"))


def test_a_node_that_reads_what_comes_later() -> None:
    found = model("{ a = Relu(x) y = Neg(a) }")
    first, second = found.graph[0], found.graph[1]
    found.graph.remove(first)
    found.graph.insert_after(second, first)
    with pytest.raises(PassError, match=r"node .* \(Neg\) reads 'a', which nothing before it"):
        verify_structure(found)


def test_a_name_written_twice() -> None:
    found = model("{ a = Relu(x) y = Neg(a) }")
    found.graph[1].outputs[0].name = "a"
    with pytest.raises(PassError, match=r"\(Neg\) writes 'a' a second time"):
        verify_structure(found)


def test_an_output_that_nothing_writes() -> None:
    found = model("{ a = Relu(x) y = Neg(a) }")
    found.graph.remove(found.graph[1])
    with pytest.raises(PassError, match="graph output 'y' is written by nothing"):
        verify_structure(found)


def test_a_branch_may_read_what_lies_outside_and_before() -> None:
    body = """{ a = Relu(x) y = If (c) <
        then_branch = t () => (float[A,B,C] u) { u = Neg(a) },
        else_branch = e () => (float[A,B,C] u) { u = Abs(a) }> }"""
    found = model(body, inputs="float[2,3,4] x, bool c")
    verify_structure(found)
    relu, branch = found.graph[0], found.graph[1]
    found.graph.remove(relu)
    found.graph.insert_after(branch, relu)
    with pytest.raises(PassError, match=r"\(Neg\) reads 'a'"):
        verify_structure(found)
