"""Costs: profiles corrected to the clock, times handed to layers, conversions by size, the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.backends.ort_profile import Kernel, TensorInfo
from qcompile.ir.errors import OptionError
from qcompile.planner.costs import Costs, LayerCost, measure_costs, table_costs
from qcompile.planner.kernel_times import OVERHEAD_NS, Conversion, corrected, form_times
from qcompile.planner.unit_costs import UnitCosts, measure_unit_costs, table_unit_costs

COSTS = Costs(
    layers={"/b": LayerCost(50, 20), "/a": LayerCost(100, 40, 70), "/rest": LayerCost(7)},
    quantize_ns={"t": 5},
    dequantize_ns={"t": 6},
    totals_ns={"float": 160, "int8": 80},
    base_ns=3,
    source="measured",
    threads=2,
    shapes={"x": (1, 3, 8, 8)},
    machine={"cpu": "zen5", "cores": 2},
    versions={"onnxruntime": "1.31.1"},
)


def kernel(ns: float, inputs: int = 2) -> Kernel:
    info = TensorInfo("float", (1,))
    return Kernel("k", "Add", "", (), (), (info,) * inputs, (info,), ns)


@given(
    st.lists(st.tuples(st.floats(500, 1e6), st.integers(1, 9)), min_size=1, max_size=40),
    st.floats(1e3, 1e7),
)
def test_corrected_times_add_up(shown: list[tuple[float, int]], total: float) -> None:
    times = corrected([kernel(ns, n) for ns, n in shown], total)
    assert sum(times) == pytest.approx(total, rel=1e-9)
    assert min(times) > 0


@given(st.lists(st.floats(4_000, 1e6), min_size=2, max_size=30), st.floats(0, 3_000))
def test_overhead_is_taken_off_exactly(true: list[float], unit: float) -> None:
    # every kernel shows unit * (1 + 0.05 * 2) more than it takes, and none is near its floor
    shown = [kernel(ns + unit * 1.1) for ns in true]
    assert corrected(shown, sum(true)) == pytest.approx(true, rel=1e-6)


def test_raw_profile_would_pick_the_wrong_model() -> None:
    # 19 float kernels of 2 us against 27 integer ones of 1.3 us, with 2 us of profiler on each
    float_times = corrected([kernel(4_000) for _ in range(19)], 19 * 2_000)
    int_times = corrected([kernel(3_300) for _ in range(27)], 27 * 1_300)
    assert 19 * 4_000 < 27 * 3_300
    assert sum(float_times) > sum(int_times)


def test_more_than_a_profiler_adds_is_scaled() -> None:
    # the machine was ten times slower while profiling: a common factor, not an overhead
    times = corrected([kernel(1e6), kernel(3e6)], 4e5)
    assert times[1] / times[0] == pytest.approx(3, rel=0.02)
    assert OVERHEAD_NS < 1e5


def test_nothing_executed() -> None:
    assert corrected([], 10.0) == []
    assert corrected([kernel(0.0)], 10.0) == [0.0]


def test_costs_survive_the_file() -> None:
    text = COSTS.to_json()
    assert Costs.from_json(text) == COSTS
    assert text == Costs.from_json(text).to_json()
    assert text.index('"/a"') < text.index('"/b"')
    json.loads(text)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"version": 9}, "version 9"),
        ({"layers": {"/a": {"float_ns": -1}}}, "no whole number"),
        ({"layers": {"/a": {"float_ns": 1.5}}}, "no whole number"),
        ({"layers": {"/a": {"speed": 1}}}, "not readable"),
        ({"tensors": {"t": {"quantize_ns": 1}}}, "not readable"),
        ({"tensors": None}, "not readable"),
    ],
)
def test_unreadable_costs_are_refused(change: dict[str, Any], text: str) -> None:
    data = {**json.loads(COSTS.to_json()), **change}
    with pytest.raises(OptionError, match=text):
        Costs.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "[]", "{}", "no json"])
def test_foreign_files_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"needed: a costs\.json"):
        Costs.from_json(text)


def test_latencies_for_the_planner() -> None:
    found = COSTS.latencies(["/a", "/b"])
    assert found.float_ns == {"/a": 100, "/b": 50}
    assert found.int_ns == {"/a": 40, "/b": 20}
    assert found.dynamic_ns == {"/a": 70}
    assert found.base_ns == 3 + 7


def test_report_says_where_costs_come_from() -> None:
    assert COSTS.text() == "costs: measured on zen5, 2 threads, ONNX Runtime 1.31.1"
    assert "not measured" in table_costs({"/a": (1000, 10)}, {}).text()


def test_curves_interpolate_and_extend() -> None:
    units = UnitCosts({"quantize": ((100, 400.0), (1100, 1400.0))})
    assert units.quantize(50) == 400
    assert units.quantize(600) == 900
    assert units.quantize(2200) == 2800
    assert units.dequantize(600) == 0


def test_curves_follow_what_was_seen_in_context() -> None:
    units = UnitCosts({"quantize": ((0, 100.0), (1000, 100.0))})
    seen = [Conversion(quantize=True, elements=500, ns=300.0)]
    assert units.scaled(seen).quantize(1) == pytest.approx(300)
    assert units.scaled([]).quantize(1) == 100
    wild = [Conversion(quantize=True, elements=500, ns=1e9)]
    assert units.scaled(wild).quantize(1) == pytest.approx(500)


def test_conversions_of_this_machine_grow_with_size() -> None:
    units = measure_unit_costs(threads=1)
    for one in (units.quantize, units.dequantize, units.transpose):
        assert 0 < one(64) <= one(65536) < one(1 << 21)


def test_table_knows_work_and_size() -> None:
    costs = table_costs({"/big": (10**7, 10**4), "/small": (0, 10**4)}, {"t": 10**6, "u": 10})
    big, small = costs.layers["/big"], costs.layers["/small"]
    assert (big.float_ns or 0) > (big.int_ns or 0) > (small.int_ns or 0)
    assert costs.quantize_ns["t"] > costs.quantize_ns["u"]
    assert table_unit_costs().quantize(10**6) > 1e5


def integer_model(path: Path) -> Path:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    m (float[n, 8, 16, 16] x) => (float[n, 8, 16, 16] y) {
        qx = QuantizeLinear(x, s, z)
        [first] a = QLinearConv<pads = [1, 1, 1, 1]>(qx, s, z, w, s, zw, s, z)
        [second] b = QLinearConv<pads = [1, 1, 1, 1]>(a, s, z, w, s, zw, s, z)
        y = DequantizeLinear(b, s, z)
    }"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, array in {
        "s": np.float32(0.05),
        "z": np.uint8(128),
        "zw": np.int8(0),
        "w": rng.integers(-127, 127, (8, 8, 3, 3)).astype(np.int8),
    }.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    onnx.save(model, path)
    return path


def float_model(path: Path) -> Path:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    m (float[n, 8, 16, 16] x) => (float[n, 8, 16, 16] y) {
        [first] a = Conv<pads = [1, 1, 1, 1]>(x, w)
        [second] y = Conv<pads = [1, 1, 1, 1]>(a, w)
    }"""
    model = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).normal(size=(8, 8, 3, 3)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, path)
    return path


FEED = {"x": np.random.default_rng(1).normal(size=(1, 8, 16, 16)).astype(np.float32)}


def test_times_go_to_layers_and_conversions(tmp_path: Path) -> None:
    found = form_times(integer_model(tmp_path / "i.onnx"), FEED, 100_000, threads=1, budget_s=0.05)
    assert set(found.layers) == {"first", "second"}
    assert [c.quantize for c in found.conversions] == [True, False]
    assert all(c.boundary and c.elements == 8 * 16 * 16 for c in found.conversions)
    assert found.unmapped_ns == 0
    # what rearranges for a kernel stands beside Q and DQ here, and counts with their size
    whole = sum(found.layers.values()) + sum(c.ns for c in found.conversions) + found.base_ns
    assert 0.5 * 100_000 < whole <= 100_000 * (1 + 1e-9)


def test_conversions_between_integer_layers_are_theirs(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    m (float[n, 64] x) => (float[n, 64] y) {
        qx = QuantizeLinear(x, s, z)
        [first] a = MaxPool1(qx)
        da = DequantizeLinear(a, s, z)
        [middle] b = Erf(da)
        qb = QuantizeLinear(b, s, z)
        [last] c = Gather1(qb)
        y = DequantizeLinear(c, s, z)
    }"""
    text = text.replace("MaxPool1(qx)", "Gather<axis = 1>(qx, order)")
    text = text.replace("Gather1(qb)", "Gather<axis = 1>(qb, order)")
    model = onnx.parser.parse_model(text)
    for name, array in {
        "s": np.float32(0.05),
        "z": np.uint8(128),
        "order": np.arange(64)[::-1].astype(np.int64),
    }.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    feed = {"x": np.ones((2, 64), np.float32)}
    alone = form_times(path, feed, 100_000, threads=1, budget_s=0.05)
    asked = form_times(
        path, feed, 100_000, integer=("first", "middle", "last"), threads=1, budget_s=0.05
    )
    assert [c.boundary for c in alone.conversions] == [True] * 4
    assert [c.boundary for c in asked.conversions] == [True, False, False, True]
    paid = sum(c.ns for c in asked.conversions if not c.boundary)
    assert asked.layers["middle"] > paid > 0


def test_measured_costs_add_up(tmp_path: Path) -> None:
    shares: list[float] = []
    costs = measure_costs(
        float_model(tmp_path / "f.onnx"),
        integer_model(tmp_path / "i.onnx"),
        [FEED],
        elements={"a": 2048},
        threads=1,
        budget_s=1.0,
        progress=shares.append,
    )
    floats = sum(c.float_ns or 0 for c in costs.layers.values())
    assert floats + costs.base_ns == pytest.approx(costs.totals_ns["float"], rel=0.05)
    assert set(costs.layers) == {"first", "second"}
    assert all(c.int_ns for c in costs.layers.values())
    assert costs.quantize_ns["a"] > 0 and costs.dequantize_ns["a"] > 0
    assert costs.shapes == {"x": (1, 8, 16, 16)}
    assert costs.machine and costs.versions["numpy"]
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1.0)
    assert Costs.from_json(costs.to_json()) == costs


def test_what_was_timed_already_is_not_timed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("timed again")

    monkeypatch.setattr("qcompile.planner.costs.measure_many", never)
    plain, integer = float_model(tmp_path / "f.onnx"), integer_model(tmp_path / "i.onnx")
    clock = {plain: 50_000.0, integer: 20_000.0}
    costs = measure_costs(plain, integer, [FEED], threads=1, budget_s=0.2, clock=clock)
    assert costs.totals_ns == {"float": 50_000, "int8": 20_000}
    assert sum(c.float_ns or 0 for c in costs.layers.values()) <= 50_000


def test_real_model_is_handed_out_completely(fmnist_model: Path) -> None:
    feed = {"image": np.zeros((1, 1, 28, 28), np.float32)}
    found = form_times(fmnist_model, feed, 1e6, threads=1, budget_s=0.1)
    assert found.unmapped_ns == 0
    assert sum(found.layers.values()) + found.base_ns == pytest.approx(1e6, rel=1e-6)
