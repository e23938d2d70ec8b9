"""MACs against numbers worked out by hand."""

from __future__ import annotations

import onnx.parser
import onnx_ir as oir
import pytest

from qcompile.ir.macs import macs


def last(graph: str) -> oir.Node:
    """The last node of a model with inferred shapes."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {graph}')
    return list(oir.from_proto(onnx.shape_inference.infer_shapes(proto)).graph)[-1]


@pytest.mark.parametrize(
    ("graph", "want"),
    [
        (
            "(float[1,16,12,12] x, float[32,16,3,3] w) => (float[1,32,10,10] y) { y = Conv (x, w) }",
            1 * 32 * 10 * 10 * 16 * 9,
        ),
        (
            "(float[1,16,12,12] x, float[16,1,3,3] w) => (float[1,16,10,10] y) "
            "{ y = Conv <group = 16> (x, w) }",
            16 * 10 * 10 * 9,
        ),
        (
            "(float[1,16,5,5] x, float[16,8,2,2] w) => (float[1,8,10,10] y) "
            "{ y = ConvTranspose <strides = [2, 2]> (x, w) }",
            16 * 5 * 5 * 8 * 4,
        ),
        (
            "(float[2,7,8] x, float[8,5] w) => (float[2,7,5] y) { y = MatMul (x, w) }",
            2 * 7 * 5 * 8,
        ),
        (
            "(float[8,7] x, float[5,8] w) => (float[7,5] y) "
            "{ y = Gemm <transA = 1, transB = 1> (x, w) }",
            7 * 5 * 8,
        ),
        (
            "(float[9,2,3] x, float[1,16,3] w, float[1,16,4] r) => (float[9,1,2,4] y) "
            "{ y = LSTM <hidden_size = 4> (x, w, r) }",
            9 * 2 * 16 * (3 + 4),
        ),
        ("(float[2,7] x) => (float[2,7] y) { y = Relu (x) }", 0),
    ],
)
def test_by_hand(graph: str, want: int) -> None:
    assert macs(last(graph)) == want


def test_dynamic_shapes_need_concrete_ones() -> None:
    node = last("(float[N,7,8] x, float[8,5] w) => (float[N,7,5] y) { y = MatMul (x, w) }")
    assert macs(node) is None
    assert macs(node, {"x": (3, 7, 8), "y": (3, 7, 5)}) == 3 * 7 * 5 * 8
