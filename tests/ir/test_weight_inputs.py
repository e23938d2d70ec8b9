"""Initializers that are graph inputs too: what callers may override, and what exporters only list."""

from __future__ import annotations

import numpy as np
from onnx import numpy_helper

from qcompile.ir.graph import constant
from qcompile.ir.load import load_model
from tests.ir.loading import X, parse, run, texts


def test_before_ir_4_weights_are_taken_out_of_the_inputs() -> None:
    proto = parse("g (float[N,3] x, float[3] w) => (float[N,3] y) { y = Mul(x, w) }", 8, 3)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "w"))
    loaded = load_model(proto)
    assert [v.name for v in loaded.model.graph.inputs] == ["x"]
    assert loaded.model.ir_version == 4
    assert constant(loaded.model.graph.initializers["w"]) is not None


def test_an_overridable_weight_is_no_constant() -> None:
    proto = parse("g (float[N,3] x, float[3] w) => (float[N,3] y) { y = Mul(x, w) }")
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "w"))
    loaded = load_model(proto)
    weight = loaded.model.graph.initializers["w"]
    assert weight.is_graph_input() and constant(weight) is None
    assert "weight 'w' is also graph inputs" in texts(loaded)
    twice = {"x": X, "w": np.full(3, 2, np.float32)}
    np.testing.assert_array_equal(run(loaded.model, twice)[0], X * 2)
    np.testing.assert_array_equal(run(loaded.model, {"x": X})[0], X)
    fixed = load_model(proto, fix_weights=True)
    assert constant(fixed.model.graph.initializers["w"]) is not None
    assert [v.name for v in fixed.model.graph.inputs] == ["x"]


def test_weights_that_are_all_inputs_were_listed_by_an_exporter() -> None:
    proto = parse(
        "g (float[N,3] x, float[3] w, float[3] b) => (float[N,3] y) { m = Mul(x, w)  y = Add(m, b) }"
    )
    for name in ("w", "b"):
        proto.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), name))
    loaded = load_model(proto)
    assert [v.name for v in loaded.model.graph.inputs] == ["x"]
    assert "2 weights are no longer graph inputs: taken as constants" in texts(loaded)
    asked = load_model(proto, fix_weights=False)
    assert [v.name for v in asked.model.graph.inputs] == ["x", "w", "b"]
    del proto.graph.input[2]
    meant = load_model(proto)
    assert [v.name for v in meant.model.graph.inputs] == ["x", "w"]
