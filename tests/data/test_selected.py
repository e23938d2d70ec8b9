"""Outputs whose rows a selection orders."""

from __future__ import annotations

import onnx
import onnx_ir as oir
import pytest

from qcompile.data.selected import selected_outputs

TOP = """
    s = ReduceMax <keepdims = 0> (scores, last)
    values, index = TopK (s, k)
    places = Unsqueeze (index, last)
    wide = Expand (places, four)
"""
BOXES = TOP + "y = GatherElements <axis = 1> (boxes, wide)"


def model(body: str, output: str) -> oir.Model:
    text = f"""<ir_version: 8, opset_import: ["" : 18]>
    g (float[1, 9, 4] boxes, float[1, 9, 3] scores) => ({output})
    <int64[1] last = {{-1}}, int64[1] k = {{5}}, int64[3] four = {{1, 5, 4}}, float[4, 4] w> {{ {body} }}"""
    proto = onnx.parser.parse_model(text)
    return oir.from_proto(onnx.shape_inference.infer_shapes(proto))


@pytest.mark.parametrize(
    ("body", "output", "found"),
    [
        (BOXES, "float[1, 5, 4] y", {"y": "TopK"}),
        (BOXES, "float[1, 5, 4] y, float[1, 9, 4] boxes", {"y": "TopK"}),
        (TOP, "float[1, 5] values, int64[1, 5] index", {}),
        (BOXES + " z = MatMul (y, w)", "float[1, 5, 4] z", {}),
        ("y = ArgMax <keepdims = 0> (scores)", "int64[9, 3] y", {}),
        (
            "i = ArgMax <keepdims = 0> (scores)  y = Cast <to = 1> (i)",
            "float[9, 3] y",
            {"y": "ArgMax"},
        ),
        ("y = Relu (boxes)", "float[1, 9, 4] y", {}),
    ],
)
def test_selected(body: str, output: str, found: dict[str, str]) -> None:
    told = selected_outputs(model(body, output))
    assert {name: node.op_type for name, node in told.items()} == found
