"""Layers that the runtime refuses as integers are found, and only those become float."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qcompile
from qcompile import runnable
from qcompile.backends import ort
from qcompile.ir.errors import ModelError
from qcompile.ir.plan import FLOAT, INT8, LayerChoice, PrecisionPlan
from qcompile.runnable import MOST, find_refused


def plan(count: int) -> PrecisionPlan:
    return PrecisionPlan(tuple(LayerChoice(f"n{i}", "Conv", INT8, "") for i in range(count)))


def refuses(names: set[str]) -> Callable[[PrecisionPlan], str]:
    def refusal(trial: PrecisionPlan) -> str:
        bad = [c.origin for c in trial.layers if c.origin in names and c.precision == INT8]
        return f"no kernel for {bad[0]}" if bad else ""

    return refusal


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_exactly_the_refused_layers_are_found(case: tuple[int, set[int]]) -> None:
    count, bad = case
    names = {f"n{i}" for i in bad}
    found = find_refused(plan(count), refuses(names))
    assert set(found) == (names if len(names) <= MOST else set())
    for name, reason in found.items():
        assert name in names and reason.startswith("ONNX Runtime refuses it as an integer: no")


def test_a_model_that_fails_anyway_is_left_to_the_gate() -> None:
    assert find_refused(plan(5), lambda _: "out of memory") == {}


def test_a_pinned_layer_stays() -> None:
    start = plan(4).pin({"n2": INT8})
    assert find_refused(start, refuses({"n2"})) == {}
    assert set(find_refused(start, refuses({"n1"}))) == {"n1"}


def test_a_refused_kernel_costs_one_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime "refuses" the integer form of the second Conv, when it is run."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[n,64,8,8] x) => (float[n,64,8,8] last) {
          y = Conv<pads = [1, 1, 1, 1]> (x, a)
          r = Relu(y)
          last = Conv<pads = [1, 1, 1, 1]> (r, b)
        }"""
    )
    for name in ("a", "b"):
        array = rng.normal(size=(64, 64, 3, 3)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))

    def open_session(path: Path, **options: object) -> ort.Session:
        nodes = onnx.load(path).graph.node
        if any("last" in n.output[0] and n.op_type != "Conv" for n in nodes):
            raise ModelError("node 'last' (QLinearConv): zero point and scale differ")
        return ort.open_session(path, threads=1)

    monkeypatch.setattr(runnable, "open_session", open_session)
    result = qcompile.compile(
        model,
        calibration=[{"x": rng.normal(size=(1, 64, 8, 8)).astype(np.float32)} for _ in range(12)],
        output=tmp_path / "out",
        min_speedup=0.01,
        min_sqnr=1.0,
        effort="fast",
        gate_time=0.3,
    )
    convs = [layer for layer in result.report.layers if layer["op_type"] == "Conv"]
    assert [layer["requested"] == FLOAT for layer in convs] == [False, True]
    assert "zero point and scale differ" in convs[1]["reason"]
