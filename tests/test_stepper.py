"""A model run part by part gives what it gives as a whole, and can be changed on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as oir
import pytest

from qcompile.capture import capture, tensor_sizes
from qcompile.ir.errors import CalibrationError
from qcompile.stepper import Stepper
from tests.passes.qdq_models import run

RNG = np.random.default_rng(2)
W = RNG.standard_normal((4, 4)).astype(np.float32)

GRAPH = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N,4] x, bool c) => (float[N,4] y, float[N,4] t)
<float[4,4] w>
{
  a = MatMul (x, w)
  t = Tanh (a)
  k = If (c) <
    then_branch = th () => (float[N,4] p) { p = Add (a, x) },
    else_branch = el () => (float[N,4] q) { q = Sub (a, t) }
  >
  y = MatMul (k, w)
}
"""


@pytest.fixture
def proto() -> onnx.ModelProto:
    made = onnx.parser.parse_model(GRAPH)
    del made.graph.initializer[:]
    made.graph.initializer.append(onnx.numpy_helper.from_array(W, "w"))
    return made


@pytest.fixture
def feeds() -> list[dict[str, np.ndarray]]:
    return [
        {
            "x": RNG.standard_normal((i + 1, 4)).astype(np.float32),
            "c": np.array(i % 2 == 0),
            "unused": np.zeros(3),
        }
        for i in range(4)
    ]


def whole(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    return run(proto, {k: feed[k] for k in ("x", "c")})


@pytest.mark.parametrize("stops", [[4], [1, 2, 3, 4], [2, 4], [0, 3, 3, 4]])
def test_parts_give_what_the_whole_gives(
    proto: onnx.ModelProto, feeds: list[dict[str, np.ndarray]], stops: list[int]
) -> None:
    stepper = Stepper(oir.from_proto(proto), feeds)
    for stop in stops:
        stepper.run_to(stop)
    for values, feed in zip(stepper.live, feeds, strict=True):
        y, t = whole(proto, feed)
        assert set(values) == {"y", "t"}
        np.testing.assert_allclose(values["y"], y, rtol=1e-5)
        np.testing.assert_allclose(values["t"], t, rtol=1e-5)


def test_only_what_is_still_read_is_kept(
    proto: onnx.ModelProto, feeds: list[dict[str, np.ndarray]]
) -> None:
    stepper = Stepper(oir.from_proto(proto), feeds)
    stepper.run_to(2)
    assert set(stepper.live[0]) == {"x", "c", "a", "t"}
    assert stepper.held_bytes() == sum(a.nbytes for v in stepper.live for a in v.values()) > 0
    stepper.run_to(3)
    assert set(stepper.live[0]) == {"k", "t"}


def test_a_node_may_run_with_other_constants(
    proto: onnx.ModelProto, feeds: list[dict[str, np.ndarray]]
) -> None:
    stepper = Stepper(oir.from_proto(proto), feeds)
    stepper.run_to(3)
    stepper.run_next({1: 2 * W}, np.float32(1))
    for values, feed in zip(stepper.live, feeds, strict=True):
        np.testing.assert_allclose(values["y"], 2 * whole(proto, feed)[0] + 1, rtol=1e-4, atol=1e-5)


def test_what_does_not_run_is_an_error(
    proto: onnx.ModelProto, feeds: list[dict[str, np.ndarray]]
) -> None:
    feeds[0]["x"] = np.zeros((2, 5), np.float32)
    with pytest.raises(CalibrationError, match="does not run by itself"):
        Stepper(oir.from_proto(proto), feeds).run_to(4)


def test_captured_tensors_are_those_of_the_model(
    proto: onnx.ModelProto, feeds: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    model = oir.from_proto(proto)
    path = tmp_path / "c.onnx"
    for values, feed in zip(capture(model, ["x", "a"], feeds, path), feeds, strict=True):
        assert values["x"] is feed["x"]
        np.testing.assert_allclose(values["a"], feed["x"] @ W, rtol=1e-5)
    assert [dict(v) for v in capture(model, ["x"], feeds, path)] == [{"x": f["x"]} for f in feeds]
    assert tensor_sizes(model, ["x", "a"], feeds[3], path) == {"x": 64, "a": 64}
    assert [value.name for value in model.graph.outputs] == ["y", "t"]


def test_tensors_that_no_one_makes_are_refused(
    proto: onnx.ModelProto, feeds: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    model, path = oir.from_proto(proto), tmp_path / "c.onnx"
    with pytest.raises(CalibrationError, match="'p' is not in the main graph"):
        next(capture(model, ["p"], feeds, path))
    with pytest.raises(CalibrationError, match="sample 0 does not run"):
        next(capture(model, ["a"], [{"c": np.array(True)}], path))
