"""What callers read is found through moves, constants and sigmoids, and no further."""

from __future__ import annotations

import math

import onnx
import onnx_ir as oir

from qcompile.passes.handed_out import SATURATED, handed_out


def test_a_detection_head() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,4,8] boxes, float[1,2,8] logits) => (float[1,6,8] y, int64[1,8] best)
        <float two = {2.0}, int64 axis = {1}> {
          b = Relu(boxes)
          scaled = Mul(b, two)
          s = Relu(logits)
          scores = Sigmoid(s)
          y = Concat<axis = 1>(scaled, scores)
          best = ArgMax<axis = 1, keepdims = 0>(scores)
        }"""
    )
    found = handed_out(oir.from_proto(model))
    assert found == {
        "y": math.inf,
        "scaled": math.inf,
        "scores": math.inf,
        "b": math.inf,
        "s": SATURATED,
    }


def test_the_wider_limit_counts() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,8] x) => (float[1,8] p, float[1,8] t) {
          h = Relu(x)
          p = Sigmoid(h)
          t = Identity(h)
        }"""
    )
    assert handed_out(oir.from_proto(model)) == {"p": math.inf, "t": math.inf, "h": math.inf}


def test_a_sum_of_two_that_vary_ends_the_way() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,8] x) => (float[1,8] y) { a = Relu(x) b = Abs(x) y = Add(a, b) }"""
    )
    assert handed_out(oir.from_proto(model)) == {"y": math.inf}
