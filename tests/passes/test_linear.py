"""What scaling inputs and outputs does to weights, against the layer itself."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as oir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qcompile.passes.linear import Linear, as_linear, read_affine
from tests.passes.checks import parse, run, state_of

HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'
LAYERS = [
    ("Conv(x, w, b)", "float[N, 4, 5, 5] x", (6, 4, 3, 3), 4, 6),
    ("Conv<group = 2>(x, w, b)", "float[N, 4, 5, 5] x", (6, 2, 1, 1), 4, 6),
    ("Conv<group = 4>(x, w, b)", "float[N, 4, 5, 5] x", (8, 1, 2, 2), 4, 8),
    ("Conv(x, w, b)", "float[N, 4, 7] x", (6, 4, 3), 4, 6),
    ("ConvTranspose(x, w, b)", "float[N, 4, 5, 5] x", (4, 6, 2, 2), 4, 6),
    ("ConvTranspose<group = 2>(x, w, b)", "float[N, 4, 5, 5] x", (4, 3, 2, 2), 4, 6),
    ("Gemm(x, w, b)", "float[N, 4] x", (4, 6), 4, 6),
    ("Gemm<transB = 1, alpha = 0.5, beta = 3.0>(x, w, b)", "float[N, 4] x", (6, 4), 4, 6),
]


def build(layer: str, data: str, shape: tuple[int, ...], outputs: int) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    text = f"{HEADER}g ({data}) => (float y) {{ y = {layer} }}".replace("float y", "float[...] y")
    text = text.replace("float[...] y", "float[A] y")
    model = parse(
        text,
        w=rng.normal(size=shape).astype(np.float32),
        b=rng.normal(size=outputs).astype(np.float32),
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def channels(vector: np.ndarray, rank: int) -> np.ndarray:
    return vector.reshape(-1, *(1,) * (rank - 2))


factors = st.floats(0.25, 4, width=32)


@pytest.mark.parametrize(("layer", "data", "shape", "inputs", "outputs"), LAYERS)
@given(data_=st.data())
@settings(max_examples=8, deadline=None)
def test_scaling_equals_scaling_the_tensors(
    layer: str, data: str, shape: tuple[int, ...], inputs: int, outputs: int, data_: st.DataObject
) -> None:
    model = build(layer, data, shape, outputs)
    rank = data.count(",") + 1
    x = np.random.default_rng(1).normal(size=[2, *([4, 5, 5] if rank == 4 else [4, 7])][:rank])
    x = x.astype(np.float32)
    scale_in = data_.draw(arrays(np.float64, inputs, elements=factors))
    scale_out = data_.draw(arrays(np.float64, outputs, elements=factors))
    shift_out = data_.draw(arrays(np.float64, outputs, elements=factors))
    state = state_of(model)
    graph = state.model.graph
    (node,) = graph
    linear = as_linear(node)
    assert isinstance(linear, Linear)
    assert (linear.inputs, linear.outputs) == (inputs, outputs)
    shift_in = np.zeros(inputs) if linear.why_no_input_shift() else scale_in[::-1]
    linear.scale_inputs(graph, scale_in, shift_in)
    again = as_linear(node)
    assert isinstance(again, Linear)
    again.scale_outputs(graph, scale_out, shift_out)
    (have,) = run(state.model, {"x": x})
    moved = x * channels(scale_in, rank) + channels(shift_in, rank)
    (plain,) = run(model, {"x": moved.astype(np.float32)})
    want = plain * channels(scale_out, rank) + channels(shift_out, rank)
    np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize(
    ("line", "scale", "shift", "axis"),
    [
        ("y = Mul(x, k)", 2.0, 0.0, None),
        ("y = Add(k, x)", 1.0, 2.0, None),
        ("y = Sub(x, k)", 1.0, -2.0, None),
        ("y = Sub(k, x)", -1.0, 2.0, None),
        ("y = Div(x, k)", 0.5, 0.0, None),
        ("y = Mul(x, v)", [1.0, 2.0, 3.0], 0.0, -3),
    ],
)
def test_read_affine(line: str, scale: object, shift: object, axis: int | None) -> None:
    node = affine_node(line)
    read = read_affine(node)
    assert read is not None
    np.testing.assert_array_equal(read.scale, scale)
    np.testing.assert_array_equal(read.shift, shift)
    assert read.axis == axis


@pytest.mark.parametrize(
    "line",
    ["y = Div(k, x)", "y = Mul(x, x)", "y = Div(x, zero)", "y = Pow(x, k)", "y = Add(x, wide)"],
)
def test_no_affine(line: str) -> None:
    assert read_affine(affine_node(line)) is None


def affine_node(line: str) -> oir.Node:
    text = f"""{HEADER}g (float[N, 3, 4, 4] x) => (float[A] y)
        <float k = {{2.0}}, float[3, 1, 1] v = {{1.0, 2.0, 3.0}}, float zero = {{0.0}},
         float[1, 1, 1, 1, 1] wide = {{1.0}}> {{ {line} }}"""
    (node,) = oir.from_proto(onnx.parser.parse_model(text)).graph
    return node
